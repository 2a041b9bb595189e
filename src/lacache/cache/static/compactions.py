"""Compactions as tables of slots, made once and used by every row."""

from functools import lru_cache
from typing import final

import torch
from torch import Tensor

from lacache.policies.schedule import Schedule, State

_REMEMBERED = 128


@final
class Compactions:
    """For each compaction of a schedule, which slots every pattern keeps.

    Slots and cursor alone decide once the schedule is steady, so the same few tables come again.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.patterns = sorted(set(schedule.patterns))
        self._table = lru_cache(maxsize=_REMEMBERED)(self._make)

    def surviving(self, state: State) -> Tensor:
        """Slots [patterns, N] that stay when a full cache compacts, in increasing order."""
        steady = state.num_seen >= self.schedule.steady_from
        return self._table(state._replace(num_seen=self.schedule.steady_from) if steady else state)

    def _make(self, state: State) -> Tensor:
        keep = torch.ones(len(self.patterns), state.num_cached, dtype=torch.bool)
        for row, pattern in enumerate(self.patterns):
            for start, stop in self.schedule.evicted_slots(state, pattern):
                keep[row, start:stop] = False
        return keep.nonzero()[:, 1].contiguous().view(len(self.patterns), -1)
