"""A bounded schedule as arrays, in plain numpy."""

from functools import cached_property
from typing import final

import numpy as np
from numpy.typing import NDArray

from lacache.policies.schedule import Schedule, State, Timetable

Integers = NDArray[np.int64]


@final
class ScheduleArrays:
    """The slot of any token of a sequence, and what each of its compactions moves.

    Compactions are counted from 1, since the start of the sequence.

    Args:
        schedule: of every sequence; bounded.
    """

    def __init__(self, schedule: Schedule) -> None:
        timetable = Timetable(schedule)
        self.schedule = schedule
        self._states = timetable.compactions
        self._seen = np.array([state.num_seen for state in self._states], dtype=np.int64)
        self._left = np.array(
            [schedule.compact(state).num_cached for state in self._states], dtype=np.int64
        )
        self._start = timetable.period_start.num_seen
        self._period = timetable.period_tokens
        self._per_period = int((self._seen >= self._start).sum())
        self._moves: dict[int, tuple[int, Integers]] = {}

    @cached_property
    def patterns(self) -> tuple[int, ...]:
        """Pattern numbers of the schedule, in the order of the arrays of `moves`."""
        return tuple(sorted(set(self.schedule.patterns)))

    @cached_property
    def pattern_of_layer(self) -> tuple[int, ...]:
        """Index of each layer's pattern in `patterns`."""
        indices = {pattern: index for index, pattern in enumerate(self.patterns)}
        return tuple(indices[pattern] for pattern in self.schedule.patterns)

    def locate(self, tokens: Integers) -> tuple[Integers, Integers, Integers]:
        """Locate tokens in the cache at the moment they are inserted.

        Args:
            tokens: [N], the number of tokens seen before each.

        Returns:
            The slot of each token [N]; the number of compactions before it [N]; and the compaction
            that runs directly before it, or 0 [N].
        """
        cycles = np.maximum(tokens - self._start, 0) // self._period
        seen = tokens - cycles * self._period
        last = np.searchsorted(self._seen, seen, side="right") - 1
        slots = np.where(last < 0, seen, self._left[last] + seen - self._seen[last])
        done = last + 1 + cycles * self._per_period
        is_first = (last >= 0) & (seen == self._seen[last])
        return slots, done, np.where(is_first, done, 0)

    def recurring(self, compaction: int) -> int:
        """Return the first compaction that differs from this one in its token numbers only."""
        before = len(self._states) - self._per_period
        later = compaction - 1 - before
        return 1 + before + later % self._per_period if later >= 0 else compaction

    def state_before(self, compaction: int) -> State:
        """Return the state that a compaction finds."""
        first = self.recurring(compaction)
        cycles = (compaction - first) // self._per_period
        state = self._states[first - 1]
        return state._replace(num_seen=state.num_seen + cycles * self._period)

    def count(self, seen: int) -> tuple[int, int]:
        """Return the compactions before token number `seen`, and the slots in use after them."""
        slots, done, _ = self.locate(np.array([seen]))
        return int(done[0]), int(slots[0])

    def seen_at(self, compaction: int) -> int:
        """Return the number of tokens that a compaction has seen; 0 for compaction 0."""
        return self.state_before(compaction).num_seen if compaction else 0

    def moves(self, compaction: int) -> tuple[int, Integers]:
        """Return the moves of a compaction.

        Returns:
            The first slot that changes in any pattern; and for every slot the slot that its
            content comes from, per pattern: [patterns, N].
        """
        first = self.recurring(compaction)
        if first not in self._moves:
            state = self._states[first - 1]
            sources = np.stack([self._kept(state, pattern) for pattern in self.patterns])
            stays = (sources == np.arange(sources.shape[1])).all(axis=0)
            self._moves[first] = (len(stays) if stays.all() else int(stays.argmin()), sources)
        return self._moves[first]

    def _kept(self, state: State, pattern: int) -> Integers:
        is_kept = np.ones(state.num_cached, dtype=bool)
        for start, stop in self.schedule.evicted_slots(state, pattern):
            is_kept[start:stop] = False
        return np.flatnonzero(is_kept)
