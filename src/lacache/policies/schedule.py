"""Schedules of compactions: which slots are evicted when, by token counts alone.

Every host (transformers cache, engine, vLLM) runs the same schedule: before token number
`num_seen` is inserted, if the cache is full, one compaction runs. Full is `num_cached == capacity`,
but for windows that shrink.
"""

import sys
from abc import ABC, abstractmethod
from bisect import bisect_left
from operator import attrgetter
from typing import NamedTuple, final

UNBOUNDED = sys.maxsize
"""The capacity of a cache that never compacts."""

POSITIONS = ("original", "slots")
"""Where the keys of a bounded cache can stand when a query attends to them (docs/adr/0022).

"original": a token keeps its place in the text, and the sinks stand right before the oldest other
token. "slots": the key in slot s stands at position s, as in StreamingLLM and the paper.
"""

SlotRanges = list[tuple[int, int]]
"""Slots as half-open runs `(start, stop)`, increasing and apart."""


@final
class State(NamedTuple):
    """All that a schedule depends on, in tokens."""

    num_seen: int
    num_cached: int
    cursor: int

    @property
    def num_evicted(self) -> int:
        """Tokens seen that a layer no longer holds."""
        return self.num_seen - self.num_cached

    def insert(self, num_tokens: int) -> "State":
        """The state after `num_tokens` more tokens, with no compaction between them."""
        return State(self.num_seen + num_tokens, self.num_cached + num_tokens, self.cursor)


class Schedule(ABC):
    """A policy bound to a number of layers. Layers with the same pattern keep the same tokens.

    Schedules with the same settings are equal.
    """

    capacity: int
    """Most tokens that a layer ever holds, the newest included."""
    patterns: tuple[int, ...]
    """Per layer, the number of its pattern."""
    evict_batch: int = 0
    """Slots that a compaction frees; a window that shrinks may free more. 0 if none ever runs."""
    evict_unit: int = 1
    """Slots that can only be freed together: every `evict_batch` is a multiple."""
    sinks: int = 0
    """Number of first slots that are never evicted."""
    positions: str = "slots"
    steady_from: int = 0
    """Tokens seen from which on slots and cursor alone decide, and so the schedule is periodic."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), self.capacity, self.patterns))

    @property
    def num_moving(self) -> int:
        """Number of first slots whose keys move: all of them by slot, else the sinks."""
        return self.capacity if self.positions == "slots" else self.sinks

    @property
    def final_capacity(self) -> int:
        """The capacity once the schedule is steady."""
        return self.limit(UNBOUNDED)

    def limit(self, num_seen: int) -> int:
        """Most tokens that a layer may hold when `num_seen` were seen: the capacity, as a rule."""
        return self.capacity

    @abstractmethod
    def start(self) -> State:
        """The state of an empty cache."""

    @abstractmethod
    def compact(self, state: State) -> State:
        """The state after the compaction of a full cache (`is_full`)."""

    @abstractmethod
    def evicted_slots(self, state: State, pattern: int) -> SlotRanges:
        """The slots that layers of `pattern` lose in that compaction; equally many for all."""

    def is_full(self, state: State) -> bool:
        """Whether the next token makes a compaction run first."""
        return state.num_cached >= self.limit(state.num_seen + 1)

    def room(self, state: State) -> int:
        """Return how many tokens fit before the next compaction; 0 where one is due."""
        return self.capacity - state.num_cached

    def settle(self, state: State) -> State:
        """The state that the next token finds: after the compaction, if one is due."""
        return self.compact(state) if self.is_full(state) else state


@final
class Timetable:
    """The schedule as a table: the state after any number of tokens, without counting up to it.

    Once it is steady, slots and cursor of a full cache alone decide the next compaction, and the
    sequence of compactions is soon periodic. So the table takes memory of the order of one period
    and what comes before the first.
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
        done = bisect_left(self._full, seen, key=attrgetter("num_seen"))
        if done == 0:
            return self.schedule.start().insert(num_seen)
        full = self._full[done - 1]
        state = self.schedule.compact(full).insert(seen - full.num_seen)
        return state._replace(num_seen=num_seen)
