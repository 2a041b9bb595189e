"""Tokens that the queries of a chunk see in a head group, and the slots of those left after it."""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from lacache.cache.chunk_history import ChunkHistory
from lacache.cache.slot_order import Integers


@final
@dataclass(frozen=True)
class MovedSinks:
    """The places that compactions within a chunk give the sinks of one pattern."""

    firsts: Integers
    """The query from which on each holds [V], increasing."""
    shifts: Integers
    """Distance of each sink from its original position [V, sinks]."""


@final
@dataclass(frozen=True)
class ChunkTokens:
    """The tokens of one head group that the Q queries of a chunk see.

    Before the chunk, tokens are in slots 0 to C - 1. Those of the chunk count as slots C to
    C + Q - 1, and the moved sinks of a pattern follow, one list of them after the other.
    """

    num_before: int
    """Slots in use before the chunk, C."""
    num_new: int
    """Tokens of the chunk, Q."""
    num_saved: int
    """Before the chunk, how many of the first slots' keys are among the unrotated keys."""
    num_left: int
    """Slots in use after it, N."""
    slots: Integers
    """The slot of each token, by age [patterns, C + Q]."""
    ends: Integers
    """The queries before this one see the token [patterns, C + Q]; each sees no token after its
    own."""
    moved_sinks: tuple[MovedSinks, ...]
    """By pattern."""
    moves: Integers
    """The tokens that take the places of others: pattern, slot and former slot of each [3, M]."""

    @property
    def compacts(self) -> bool:
        """Whether a compaction runs within the chunk."""
        return self.num_left < self.num_before + self.num_new

    def visible(self, pattern: int, *, moves_sinks: bool) -> Tensor:
        """Return slot of the key, slot of the value, first query and the query after the last.

        Sorted by the last two, so that what is visible together is side by side.

        Args:
            pattern: index of the layer's pattern.
            moves_sinks: whether the sinks have other keys once they are moved.

        Returns:
            Of each token that is visible to any query, int32 [T, 4].
        """
        ages = np.arange(self.num_before + self.num_new)
        slots = self.slots[pattern]
        ends = self.ends[pattern].copy()
        columns = [slots, slots, np.maximum(ages - self.num_before, 0), ends]
        sinks = self.moved_sinks[pattern]
        if moves_sinks and len(sinks.firsts):
            number, num_sinks = sinks.shifts.shape
            ends[:num_sinks] = sinks.firsts[0]
            keys = len(ages) + np.arange(number * num_sinks)
            until = np.append(sinks.firsts[1:], self.num_new)
            of_sinks = [keys, np.tile(np.arange(num_sinks), number)]
            of_sinks += [each.repeat(num_sinks) for each in (sinks.firsts, until)]
            columns = [np.concatenate(both) for both in zip(columns, of_sinks, strict=True)]
        *_, firsts, ends = columns
        order = np.lexsort((firsts, ends))
        order = order[ends[order] > firsts[order]]
        return torch.from_numpy(np.stack(columns, axis=1)[order].astype(np.int32))

    def moved(self, pattern: int) -> Tensor:
        """Return slots that get a token cached before, and its former slots [2, M]."""
        mine = (self.moves[0] == pattern) & (self.moves[2] < self.num_before)
        return torch.from_numpy(self.moves[1:, mine]).contiguous()

    def added(self, pattern: int) -> Tensor:
        """Return slots that get a token of the chunk, and its index in the chunk [2, M]."""
        mine = (self.moves[0] == pattern) & (self.moves[2] >= self.num_before)
        moved = self.moves[1:, mine]
        # The others count as being in their slots.
        stay = np.arange(self.num_before, self.num_left)
        stay = stay[~np.isin(stay, self.moves[1, self.moves[0] == pattern])]
        added = np.concatenate([moved, np.stack([stay, stay])], axis=1)
        added[1] -= self.num_before
        return torch.from_numpy(added).contiguous()


def move_sinks(
    history: ChunkHistory, given: Integers, slots: Integers, sinks: int
) -> tuple[MovedSinks, ...]:
    """Return where compactions put the sinks of each pattern: before the oldest other token.

    Args:
        history: of the compactions.
        given: position at which the model gave the key in each slot [patterns, C + Q].
        slots: of the tokens, by age [patterns, C + Q].
        sinks: number of first slots that are never evicted.
    """
    patterns = np.arange(len(given))
    if not history.compactions:
        none = MovedSinks(np.empty(0, dtype=np.int64), np.empty((0, sinks), dtype=np.int64))
        return (none,) * len(patterns)
    queries, oldest = zip(*history.compactions, strict=True)
    firsts = np.array(queries)
    ages = np.stack([np.full(len(patterns), sinks), *oldest])
    stands = given[patterns, slots[patterns, ages]]
    moves = stands[1:] != stands[:-1]
    steps = np.arange(-sinks, 0) - given[:, :sinks]
    return tuple(
        MovedSinks(firsts[mine], after[mine, None] + step)
        for mine, after, step in zip(moves.T, stands[1:].T, steps, strict=True)
    )
