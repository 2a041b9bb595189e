"""Variants of the ladder: the same counts, and other tokens in each layer."""

from abc import ABC
from dataclasses import dataclass, replace
from typing import Self

from lacache.policies.ladder import Ladder, LadderSchedule
from lacache.policies.policy import DEFAULT_POSITIONS, EVICT_BATCH, SINKS, LayerPolicy
from lacache.policies.schedule import Schedule, State


@dataclass(frozen=True, kw_only=True)
class LadderVariant(LayerPolicy, ABC):
    """Compacts when and as much as a ladder does. Subclasses choose the tokens.

    Args:
        span: see Ladder.
        overlap: see Ladder.
        sinks: first tokens, never evicted.
        recent: newest tokens that no compaction touches.
        evict_batch: slots that one compaction should evict, or a share of the capacity.
        unit: neighbouring tokens that are kept or evicted together.
        positions: "original" or "slots"; see `lacache.policies.schedule.POSITIONS`.

    Raises:
        ConfigError: a value out of range.
    """

    span: int | None = None
    overlap: int | None = None
    sinks: int = SINKS
    recent: float | None = None
    evict_batch: float = EVICT_BATCH
    unit: int = 1
    positions: str = DEFAULT_POSITIONS

    def __post_init__(self) -> None:
        self.ladder()

    def ladder(self) -> Ladder:
        """Return the ladder whose counts are followed."""
        return Ladder.like(self)

    def resolved(self, num_layers: int, capacity: int) -> Self:
        """Return this policy with every setting given, in slots."""
        ladder = self.ladder().resolved(num_layers, capacity)
        return replace(
            self,
            span=ladder.span,
            overlap=ladder.overlap,
            recent=ladder.recent,
            evict_batch=ladder.evict_batch,
        )


class LadderVariantSchedule(Schedule, ABC):
    """The states of a ladder without window layers, with other patterns."""

    def __init__(self, ladder: LadderSchedule, patterns: tuple[int, ...]) -> None:
        self._ladder = ladder
        self.capacity = ladder.capacity
        self.evict_batch, self.evict_unit = ladder.evict_batch, ladder.evict_unit
        self.sinks, self.positions = ladder.sinks, ladder.positions
        self.patterns = patterns

    def start(self) -> State:
        """Return the ladder's first state."""
        return self._ladder.start()

    def compact(self, state: State) -> State:
        """Return the ladder's next state."""
        return self._ladder.compact(state)
