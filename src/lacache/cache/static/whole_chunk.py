"""The plan of a chunk whose keys keep their positions: what is visible to each query."""

from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from lacache.cache.chunk_tokens import ChunkTokens
from lacache.cache.sequence_state import SequenceState
from lacache.cache.static.kv_heads import KVHeads
from lacache.models.rotary import RotaryTables


@final
@dataclass(frozen=True)
class VisibleTokens:
    """Tables that KV heads with the same head group, pattern and rotations share in a chunk."""

    tokens: ChunkTokens
    table: Tensor
    """See `ChunkTokens.visible`: int32 [T, 4]."""
    moved: Tensor
    """See `ChunkTokens.moved`."""
    added: Tensor
    """See `ChunkTokens.added`."""
    rotary_tables: RotaryTables | None
    """Of the moved sinks [V * sinks, D]; None where none move."""

    @classmethod
    def find(cls, tokens: ChunkTokens, heads: KVHeads, device: torch.device) -> "VisibleTokens":
        """Find what is visible to the queries of KV heads, of all tokens of their head group."""
        shifts = torch.from_numpy(tokens.moved_sinks[heads.pattern].shifts).flatten()
        tables = None
        if heads.rotations is not None and heads.num_unrotated and len(shifts):
            tables = heads.rotations.tables(shifts)
        table = tokens.visible(heads.pattern, moves_sinks=tables is not None)
        moved, added = tokens.moved(heads.pattern), tokens.added(heads.pattern)
        return cls(tokens, table.to(device), moved.to(device), added.to(device), tables)

    @cached_property
    def mask(self) -> Tensor:
        """Which of the T tokens each query sees, bool [1, 1, Q, T]."""
        queries = torch.arange(self.tokens.num_new, device=self.table.device)[:, None]
        *_, first, end = self.table.T
        mask: Tensor = (first <= queries) & (queries < end)
        return mask[None, None]


@final
class WholeChunk:
    """A chunk whose attention takes one call a layer, whatever is compacted within it.

    Args:
        sequence: before the chunk, after a compaction that was due; it does not change.
        num_new: tokens of the chunk, Q.
        device: where the KV heads are.
    """

    def __init__(self, sequence: SequenceState, num_new: int, device: torch.device) -> None:
        first = sequence.next_position()
        self.positions = torch.arange(first, first + num_new, device=device)[None]
        """Position ids [1, Q]."""
        self.after = sequence.copy()
        """Counts and positions once the forward is done."""
        self._tokens = [group.pass_chunk(num_new) for group in self.after.groups]
        self._device = device
        self._found: dict[tuple[int, int, int], VisibleTokens] = {}

    @property
    def compacts(self) -> bool:
        """Whether a compaction runs within the chunk."""
        return any(tokens.compacts for tokens in self._tokens)

    def visible_to(self, heads: KVHeads) -> VisibleTokens:
        """Return what is visible to the queries of KV heads."""
        key = heads.group, heads.pattern, id(heads.rotations)
        if key not in self._found:
            self._found[key] = VisibleTokens.find(self._tokens[heads.group], heads, self._device)
        return self._found[key]
