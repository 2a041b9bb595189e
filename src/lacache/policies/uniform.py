"""Uniform eviction: a ladder without steps, so that every layer keeps the same tokens."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

from lacache.policies.ladder import Ladder, LadderSchedule
from lacache.policies.policy import EVICT_BATCH, SINKS, LayerPolicy
from lacache.policies.schedule import Schedule, SlotRanges, State


@final
@dataclass(frozen=True, kw_only=True)
class Uniform(LayerPolicy):
    """Compacts when and as much as a ladder does, but evicts the same tokens in all layers.

    What the ladder gains by keeping different tokens in different layers shows against this.

    Args:
        span: see Ladder, as for all others.
        overlap: see Ladder.
        sinks: first tokens, never evicted.
        recent: newest tokens that no compaction touches.
        evict_batch: slots that one compaction should free.
        unit: neighbouring tokens that are kept or evicted together.

    Raises:
        ConfigError: a value out of range.
    """

    span: int | None = None
    overlap: int | None = None
    sinks: int = SINKS
    recent: float | None = None
    evict_batch: float = EVICT_BATCH
    unit: int = 1

    names: ClassVar = {"uniform": {}}

    def __post_init__(self) -> None:
        self._ladder()

    def schedule(self, num_layers: int, capacity: int) -> "UniformSchedule":
        """Return the schedule over `num_layers` layers."""
        return UniformSchedule(self._ladder().schedule(num_layers, capacity))

    def resolved(self, num_layers: int, capacity: int) -> "Uniform":
        """Return this policy with every setting given, in slots."""
        ladder = self._ladder().resolved(num_layers, capacity)
        return replace(
            self,
            span=ladder.span,
            overlap=ladder.overlap,
            recent=ladder.recent,
            evict_batch=ladder.evict_batch,
        )

    def _ladder(self) -> Ladder:
        return Ladder(
            span=self.span,
            overlap=self.overlap,
            sinks=self.sinks,
            recent=self.recent,
            evict_batch=self.evict_batch,
            unit=self.unit,
        )


@final
class UniformSchedule(Schedule):
    """The schedule of a ladder in which every layer has the same phase, the middle one."""

    def __init__(self, ladder: LadderSchedule) -> None:
        self._ladder = ladder
        self.capacity = ladder.capacity
        self.patterns = (ladder.geometry.freed // 2,) * len(ladder.patterns)

    def start(self) -> State:
        """Return the ladder's first state."""
        return self._ladder.start()

    def compact(self, state: State) -> State:
        """Return the ladder's next state."""
        return self._ladder.compact(state)

    def evicted_slots(self, state: State, pattern: int) -> SlotRanges:
        """Return the slots that a layer of that phase loses in the ladder."""
        return self._ladder.evicted_slots(state, pattern)
