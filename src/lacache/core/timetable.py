"""The schedule as a table: the state after any number of tokens, without counting up to it.

A cache is compacted only when it is full, so the cursor alone decides the next compaction, and
the sequence of compactions is soon periodic.
"""

from bisect import bisect_left
from typing import final

from lacache.core.schedule import Schedule, State


@final
class Timetable:
    """States of `schedule` by number of tokens seen, in memory of the order of one period."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        full = schedule.start().insert(schedule.capacity)
        # Compaction k runs when `capacity + freed[k]` tokens have been seen, with cursors[k].
        self._cursors: list[int] = []
        self._freed = [0]
        first_with: dict[int, int] = {}
        while full.cursor not in first_with:
            first_with[full.cursor] = len(self._cursors)
            self._cursors.append(full.cursor)
            after = schedule.compact(full)
            num_freed = full.num_cached - after.num_cached
            if num_freed == 0:
                break
            self._freed.append(self._freed[-1] + num_freed)
            full = after.insert(num_freed)
        self._first = first_with[full.cursor]
        self._cursors.append(full.cursor)

    @property
    def period_start(self) -> State:
        """The first full state that comes again."""
        num_seen = self.schedule.capacity + self._freed[self._first]
        return State(num_seen, self.schedule.capacity, self._cursors[self._first])

    @property
    def period_tokens(self) -> int:
        """Tokens from one such state to the next; 0 where nothing is ever compacted."""
        return self._freed[-1] - self._freed[self._first]

    def state_at(self, num_seen: int) -> State:
        """The state after `num_seen` tokens; a compaction that is due has not run yet."""
        excess = num_seen - self.schedule.capacity
        if excess <= 0:
            return self.schedule.start().insert(num_seen)
        periods = 0
        if excess > self._freed[-1]:
            beyond = excess - self._freed[self._first] - 1
            periods = beyond // self.period_tokens
            excess -= periods * self.period_tokens
        done = bisect_left(self._freed, excess)
        freed = self._freed[done] + periods * self.period_tokens
        return State(num_seen, num_seen - freed, self._cursors[done])
