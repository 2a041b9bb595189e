"""A model that is served with one budget, and what its cache holds after any number of tokens."""

from dataclasses import dataclass
from functools import cached_property
from typing import final

from lacache.cache.static.layout import CacheLayout
from lacache.policies.kept import KeptTable, lists_by_head
from lacache.server.engine_thread import EngineThread
from lacache.server.prefix_cache import PrefixCache
from lacache.server.schemas import Json
from lacache.server.session_store import SessionStore


@final
@dataclass(frozen=True)
class CacheInspector:
    """Computes what a cache holds from the number of tokens alone, as the cache does itself.

    Args:
        layout: of the cache.
    """

    layout: CacheLayout

    def after(self, num_seen: int) -> Json:
        """Return what each layer holds after a number of tokens.

        Returns:
            `held`: distinct lists of token numbers, ascending; `layers`: for each KV head of each
            layer the index of its list in `held`; `changes_at`: the number of tokens at the next
            eviction; `compactions` so far; `bytes` that are reserved, `held_bytes` of them in
            use, and the bytes of a full cache.
        """
        info, groups = self.layout.info, self.layout.bound.groups
        kept = [table.after(num_seen) for table in self._tables]
        held, layers = lists_by_head(groups, kept, len(info.growing))
        return {
            "num_seen": num_seen,
            "held": held,
            "layers": layers,
            "capacity": max(group.schedule.capacity for group in groups),
            "changes_at": num_seen + 1 + min(k.schedule.room(k.state) for k in kept),
            "compactions": sum(k.num_compactions for k in kept),
            "bytes": self.layout.bytes_per_sequence,
            "held_bytes": self.layout.held_bytes(num_seen, [k.state.num_cached for k in kept]),
            "full_bytes": info.bytes_per_token * num_seen,
            "full_bytes_per_token": info.bytes_per_token,
        }

    @cached_property
    def _tables(self) -> list[KeptTable]:
        return [KeptTable(group.schedule) for group in self.layout.bound.groups]


@final
@dataclass(frozen=True)
class ServedModel:
    """A model with one budget, under a name of its own.

    Args:
        name: the name that clients use.
        thread: runs its engine.
        prefix_cache: snapshots of prompts and replies.
        sessions: named sessions; None if nothing is stored on disk.
        inspector: what the cache holds after any number of tokens.
    """

    name: str
    thread: EngineThread
    prefix_cache: PrefixCache
    sessions: SessionStore | None
    inspector: CacheInspector

    def close(self) -> None:
        """End running completions, and store their state."""
        self.thread.close()
        self.prefix_cache.close()
