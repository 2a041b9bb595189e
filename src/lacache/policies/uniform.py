"""Uniform thinning: a ladder without steps, so that every layer keeps the same tokens."""

from dataclasses import dataclass
from typing import final

from lacache.policies.ladder import Ladder
from lacache.policies.schedule import Policy, Schedule, SlotRanges, State


@final
@dataclass(frozen=True)
class Uniform(Policy):
    """Thins when and as much as a ladder does, but all layers alike.

    What the ladder gains by keeping different tokens in different layers shows against this.

    Args:
        ladder: the ladder whose counts are followed; its geometry and window layers do not
            matter.
    """

    ladder: Ladder

    def smallest_capacity(self, num_layers: int) -> int:
        """The ladder's."""
        return self.ladder.smallest_capacity(num_layers)

    def bind(self, num_layers: int) -> "UniformSchedule":
        """The schedule over `num_layers` layers."""
        ladder = self.ladder.bind(num_layers)
        return UniformSchedule(ladder, phase=ladder.geometry.freed // 2)


@final
class UniformSchedule(Schedule):
    """The schedule of a ladder in which every layer has the same phase."""

    def __init__(self, ladder: Schedule, phase: int) -> None:
        self._ladder = ladder
        self.capacity = ladder.capacity
        self.patterns = (phase,) * len(ladder.patterns)

    def start(self) -> State:
        """The ladder's."""
        return self._ladder.start()

    def compact(self, state: State) -> State:
        """The ladder's."""
        return self._ladder.compact(state)

    def evicted_slots(self, state: State, pattern: int) -> SlotRanges:
        """What a layer of that phase loses in the ladder."""
        return self._ladder.evicted_slots(state, pattern)
