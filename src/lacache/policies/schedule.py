"""Schedules of compactions: which slots are evicted when, by token counts alone.

Every host (transformers cache, engine, vLLM) runs the same schedule: before token number
`num_seen` is inserted, if the cache is full, one compaction runs. Full is `num_cached == capacity`,
but for windows that shrink.
"""

import sys
from abc import ABC, abstractmethod
from typing import NamedTuple, final

UNBOUNDED = sys.maxsize
"""The capacity of a cache that never compacts."""

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
    steady_from: int = 0
    """Tokens seen from which on slots and cursor alone decide, and so the schedule is periodic."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), self.capacity, self.patterns))

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
