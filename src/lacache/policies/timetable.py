"""The schedule as a table: the state after any number of tokens, without counting up to it.

Once it is steady, slots and cursor of a full cache alone decide the next compaction, and the
sequence of compactions is soon periodic.
"""

from bisect import bisect_left
from operator import attrgetter
from typing import final

from lacache.policies.schedule import Schedule, State

_num_seen = attrgetter("num_seen")


@final
class Timetable:
    """States of `schedule` by number of tokens seen.

    In memory of the order of one period and what comes before the first.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        state = schedule.start()
        state = state.insert(schedule.room(state))
        # As every compaction finds the cache, up to the first that comes again.
        self._full: list[State] = [state]
        first_with: dict[tuple[int, int], int] = {}
        while (again := first_with.get((state.num_cached, state.cursor))) is None:
            if state.num_seen >= schedule.steady_from:
                first_with[state.num_cached, state.cursor] = len(self._full) - 1
            after = schedule.compact(state)
            if after.num_cached == state.num_cached:
                again = len(self._full) - 1
                break
            state = after.insert(schedule.room(after))
            self._full.append(state)
        self._first = again

    @property
    def compactions(self) -> tuple[State, ...]:
        """The state before each compaction, to the end of the first period; then these repeat."""
        return tuple(self._full[:-1])

    @property
    def period_start(self) -> State:
        """The first full state that recurs."""
        return self._full[self._first]

    @property
    def period_tokens(self) -> int:
        """Tokens from one such state to the next; 0 where nothing is ever compacted."""
        return self._full[-1].num_seen - self.period_start.num_seen

    def state_at(self, num_seen: int) -> State:
        """The state after `num_seen` tokens; a compaction that is due has not run yet."""
        seen, last = num_seen, self._full[-1].num_seen
        if seen > last and self.period_tokens:
            seen = self.period_start.num_seen + 1
            seen += (num_seen - seen) % self.period_tokens
        done = bisect_left(self._full, seen, key=_num_seen)
        if done == 0:
            return self.schedule.start().insert(num_seen)
        full = self._full[done - 1]
        state = self.schedule.compact(full).insert(seen - full.num_seen)
        return state._replace(num_seen=num_seen)
