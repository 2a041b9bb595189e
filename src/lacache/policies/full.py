"""The full cache: keeps everything, as transformers does by default."""

from dataclasses import dataclass
from typing import final

from lacache.policies.schedule import UNBOUNDED, Policy, Schedule, SlotRanges, State


@final
@dataclass(frozen=True)
class Full(Policy):
    """Every layer keeps every token, and memory grows with each."""

    def smallest_capacity(self, num_layers: int) -> int:
        """Unbounded."""
        return UNBOUNDED

    def bind(self, num_layers: int) -> "FullSchedule":
        """The schedule, the same at any depth."""
        return FullSchedule(num_layers)


@final
class FullSchedule(Schedule):
    """Never full, so never compacted."""

    def __init__(self, num_layers: int) -> None:
        self.capacity = UNBOUNDED
        self.patterns = (0,) * num_layers

    def start(self) -> State:
        """Empty."""
        return State(0, 0, 0)

    def compact(self, state: State) -> State:
        """Nothing to free."""
        return state

    def evicted_slots(self, state: State, pattern: int) -> SlotRanges:
        """Nothing."""
        return []
