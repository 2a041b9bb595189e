"""What a cache holds after any number of tokens, for the inspector's picture."""

from dataclasses import dataclass
from typing import final

from lacache.policies import BoundGroup
from lacache.policies.kept import kept_after
from lacache.server.schemas import Json


@final
@dataclass(frozen=True)
class Holding:
    """Computed from counts alone, as the cache does itself.

    Args:
        groups: of the plan, in the model.
        num_layers: that hold a growing cache.
        row_bytes: of one text, always.
        full_bytes_per_token: what a cache that keeps everything would take.
    """

    groups: tuple[BoundGroup, ...]
    num_layers: int
    row_bytes: int
    full_bytes_per_token: int

    def after(self, num_seen: int) -> Json:
        """What each layer holds when so many tokens are read.

        Returns:
            `held`: lists of token numbers, ascending; `layers`: for each KV head of each layer
            which of those it has; `changes_at`: with how many tokens something is dropped next;
            `compactions`: how often something was; `bytes` of the cache, and of a full one.
        """
        held: list[list[int]] = []
        heads: list[dict[int, int]] = [{} for _ in range(self.num_layers)]
        changes_at, num_compactions = [], 0
        for group in self.groups:
            kept = kept_after(group.schedule, num_seen)
            numbers = {}
            for pattern, tokens in kept.by_pattern.items():
                numbers[pattern] = len(held)
                held.append(tokens)
            for layer, its_heads in group.heads.items():
                heads[layer] |= dict.fromkeys(its_heads, numbers[group.pattern(layer)])
            num_compactions += kept.num_compactions
            room = group.schedule.room(kept.state)
            changes_at.append(num_seen + room + 1)
        return {
            "num_seen": num_seen,
            "held": held,
            "layers": [[by_head[head] for head in sorted(by_head)] for by_head in heads],
            "capacity": max(group.schedule.capacity for group in self.groups),
            "changes_at": min(changes_at),
            "compactions": num_compactions,
            "bytes": self.row_bytes,
            "full_bytes": self.full_bytes_per_token * num_seen,
            "full_bytes_per_token": self.full_bytes_per_token,
        }
