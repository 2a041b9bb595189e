"""Uniform eviction: a ladder without steps, so that every layer keeps the same tokens."""

from dataclasses import dataclass
from typing import ClassVar, final

from lacache.policies.ladder import LadderSchedule
from lacache.policies.ladder_variant import LadderVariant, LadderVariantSchedule
from lacache.policies.schedule import SlotRanges, State


@final
@dataclass(frozen=True, kw_only=True)
class Uniform(LadderVariant):
    """Compacts when and as much as a ladder does, but evicts the same tokens in all layers.

    What the ladder gains by keeping different tokens in different layers shows against this.
    """

    names: ClassVar = {"uniform": {}}

    def schedule(self, num_layers: int, capacity: int) -> "UniformSchedule":
        """Return the schedule over `num_layers` layers."""
        return UniformSchedule(self.ladder().schedule(num_layers, capacity))


@final
class UniformSchedule(LadderVariantSchedule):
    """The schedule of a ladder in which every layer has the same phase, the middle one."""

    def __init__(self, ladder: LadderSchedule) -> None:
        super().__init__(ladder, (ladder.geometry.freed // 2,) * len(ladder.patterns))

    def evicted_slots(self, state: State, pattern: int) -> SlotRanges:
        """Return the slots that a layer of that phase loses in the ladder."""
        return self._ladder.evicted_slots(state, pattern)
