"""The full cache: keeps everything, as transformers does by default."""

from dataclasses import dataclass
from typing import ClassVar, final

from lacache.policies.policy import LayerPolicy
from lacache.policies.schedule import UNBOUNDED, Schedule, SlotRanges, State


@final
@dataclass(frozen=True)
class Full(LayerPolicy):
    """Every layer keeps every token, and the cache grows with each."""

    names: ClassVar = {"full": {}}
    takes_budget: ClassVar[bool] = False

    def schedule(self, num_layers: int, capacity: int = UNBOUNDED) -> "FullSchedule":
        """Return the schedule, the same at any depth; a capacity is ignored."""
        return FullSchedule(num_layers)


@final
class FullSchedule(Schedule):
    """A schedule that is never full, and so never compacts."""

    def __init__(self, num_layers: int) -> None:
        self.capacity = UNBOUNDED
        self.patterns = (0,) * num_layers

    def start(self) -> State:
        """Return the state of an empty cache."""
        return State(0, 0, 0)

    def compact(self, state: State) -> State:
        """Return the state unchanged: nothing is freed."""
        return state

    def evicted_slots(self, state: State, pattern: int) -> SlotRanges:
        """Return an empty list: nothing is evicted."""
        return []
