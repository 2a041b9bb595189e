"""The order of tokens whose slots are out of order."""

from typing import final

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


@final
class SlotOrder:
    """Which slot each token of a pattern is in, oldest first; never modified, so copies share it.

    Args:
        slots: of the first tokens [patterns, M]. Each later token is in the slot of its rank.
    """

    def __init__(self, slots: Integers) -> None:
        self._slots = slots
        self._patterns = np.arange(len(slots))[:, None]

    def slots_at(self, rank: int) -> Integers:
        """Return the slots [patterns] of the tokens of one rank."""
        patterns, known = self._slots.shape
        return self._slots[:, rank] if rank < known else np.full(patterns, rank)

    def ranks(self, num_cached: int) -> Integers:
        """Return the rank of the token in each of `num_cached` slots [patterns, N]."""
        slots = self.all_slots(num_cached)
        ranks = np.empty_like(slots)
        ranks[self._patterns, slots] = np.arange(num_cached)
        return ranks

    def compact(self, surviving: Integers, num_cached: int) -> tuple["SlotOrder", Integers]:
        """Let tokens in the last slots take the places of those that are evicted.

        Args:
            surviving: ranks of the tokens that survive [patterns, N], increasing.
            num_cached: tokens before.

        Returns:
            The order after it, and the tokens that move: pattern, slot and former slot of each, by
            pattern [3, M].
        """
        slots = self.all_slots(num_cached)[self._patterns, surviving]
        is_free = np.ones((len(slots), num_cached), dtype=bool)
        is_free[self._patterns, slots] = False
        num_left = slots.shape[1]
        # As many survivors are in late slots as early slots are free, pattern by pattern.
        pattern, rank = (slots >= num_left).nonzero()
        _, free = is_free[:, :num_left].nonzero()
        moves = np.stack([pattern, free, slots[pattern, rank]])
        slots[pattern, rank] = free
        return SlotOrder(slots), moves

    def all_slots(self, num_cached: int) -> Integers:
        """Return the slots of `num_cached` tokens, oldest first [patterns, N]."""
        patterns, known = self._slots.shape
        later = np.broadcast_to(np.arange(known, num_cached), (patterns, num_cached - known))
        return np.concatenate([self._slots, later], axis=1)
