"""A schedule as arrays: where any token goes, and what each compaction moves."""

from functools import cached_property
from typing import final

import numpy as np
from numpy.typing import NDArray

from lacache.policies.schedule import Schedule, State
from lacache.policies.timetable import Timetable

Integers = NDArray[np.int64]


@final
class ScheduleArrays:
    """The timetable of a bounded schedule, for many tokens at a time."""

    def __init__(self, schedule: Schedule) -> None:
        timetable = Timetable(schedule)
        self._schedule = schedule
        self._states = timetable.compactions
        self._seen = np.array([state.num_seen for state in self._states], dtype=np.int64)
        self._left = np.array(
            [schedule.compact(state).num_cached for state in self._states], dtype=np.int64
        )
        self._start = timetable.period_start.num_seen
        self._period = timetable.period_tokens
        self._per_period = int((self._seen >= self._start).sum())
        self._moves: dict[int, tuple[int, Integers]] = {}

    @property
    def capacity(self) -> int:
        """Most slots that a sequence ever uses."""
        return self._schedule.capacity

    @cached_property
    def row_of_layer(self) -> tuple[int, ...]:
        """For each layer, the row of `moves` that is its own."""
        rows = {pattern: row for row, pattern in enumerate(self._patterns)}
        return tuple(rows[pattern] for pattern in self._schedule.patterns)

    @cached_property
    def _patterns(self) -> tuple[int, ...]:
        return tuple(sorted(set(self._schedule.patterns)))

    def locate(self, tokens: Integers) -> tuple[Integers, Integers, Integers]:
        """Where tokens go when they come in.

        Args:
            tokens: [N], how many tokens were seen before each.

        Returns:
            The slot of each; how many compactions have run by then; and the number of a compaction
            (for `moves`) that runs right before it, or -1.
        """
        cycles = np.maximum(tokens - self._start, 0) // self._period
        seen = tokens - cycles * self._period
        last = np.searchsorted(self._seen, seen, side="right") - 1
        slots = np.where(last < 0, seen, self._left[last] + seen - self._seen[last])
        is_first = (last >= 0) & (seen == self._seen[last])
        return slots, last + 1 + cycles * self._per_period, np.where(is_first, last, -1)

    def moves(self, compaction: int) -> tuple[int, Integers]:
        """What moves in a compaction.

        Returns:
            The first slot whose content changes in any layer; and from where that slot and those
            after it take their content, per pattern: [patterns, moved].
        """
        if compaction not in self._moves:
            state = self._states[compaction]
            sources = np.stack([self._kept(state, pattern) for pattern in self._patterns])
            stays = (sources == np.arange(sources.shape[1])).all(axis=0)
            first = len(stays) if stays.all() else int(stays.argmin())
            self._moves[compaction] = (first, sources[:, first:])
        return self._moves[compaction]

    def _kept(self, state: State, pattern: int) -> Integers:
        is_kept = np.ones(state.num_cached, dtype=bool)
        for start, stop in self._schedule.evicted_slots(state, pattern):
            is_kept[start:stop] = False
        return np.flatnonzero(is_kept)
