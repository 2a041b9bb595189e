"""Random ladders: each layer keeps units by chance, as many and as often as the ladder does.

Source: the Pareto experiment of arXiv 2507.14204 section 4, random patterns against the ladder at
the same bytes.
"""

import random
from dataclasses import dataclass
from typing import ClassVar, final

from lacache.common.validation import validate_int
from lacache.policies import Ladder, LayerPolicy, Schedule, State
from lacache.policies.ladder import LadderSchedule
from lacache.policies.policy import EVICT_BATCH, SINKS
from lacache.policies.schedule import SlotRanges

Units = tuple[int, ...]
"""Which units of every band a layer keeps, in increasing order."""


@final
@dataclass(frozen=True, kw_only=True)
class RandomLadder(LayerPolicy):
    """A ladder whose layers keep random units of each band, the same ones in every band.

    Args:
        seed: of the choice of units; another seed is another pattern of the same bytes.
        span: see Ladder, whose bands, counts and cursor are followed, as for all below.
        overlap: see Ladder.
        sinks: first tokens, never evicted.
        recent: newest tokens that no compaction touches.
        evict_batch: slots that one compaction should free.
        unit: neighbouring tokens that are kept or evicted together.

    Raises:
        ConfigError: a value out of range.
    """

    seed: int = 0
    span: int | None = None
    overlap: int | None = None
    sinks: int = SINKS
    recent: float | None = None
    evict_batch: float = EVICT_BATCH
    unit: int = 1

    names: ClassVar = {"random-ladder": {}}

    def __post_init__(self) -> None:
        validate_int("seed", self.seed, 0)
        self.ladder()

    def ladder(self) -> Ladder:
        """Return the ladder whose counts are followed."""
        return Ladder(
            span=self.span,
            overlap=self.overlap,
            sinks=self.sinks,
            recent=self.recent,
            evict_batch=self.evict_batch,
            unit=self.unit,
        )

    def schedule(self, num_layers: int, capacity: int) -> "UnitSchedule":
        """Return the schedule over `num_layers` layers."""
        ladder = self.ladder().schedule(num_layers, capacity)
        shape = ladder.geometry
        draw = random.Random(self.seed)
        units = [
            tuple(sorted(draw.sample(range(shape.band), shape.kept))) for _ in range(num_layers)
        ]
        return UnitSchedule(ladder, units)


@final
class UnitSchedule(Schedule):
    """A ladder's counts and cursor, with any units of a band for each layer.

    Args:
        ladder: a schedule without window layers.
        units: for each layer, `ladder.geometry.kept` of the units 0 to `ladder.geometry.band - 1`.
    """

    def __init__(self, ladder: LadderSchedule, units: list[Units]) -> None:
        self._ladder = ladder
        self.capacity = ladder.capacity
        self._distinct = sorted(set(units))
        self.patterns = tuple(self._distinct.index(kept) for kept in units)

    def start(self) -> State:
        """Return the ladder's first state."""
        return self._ladder.start()

    def compact(self, state: State) -> State:
        """Return the ladder's next state."""
        return self._ladder.compact(state)

    def evicted_slots(self, state: State, pattern: int) -> SlotRanges:
        """Return in each thinned band the units that layers of this pattern do not keep."""
        shape, unit = self._ladder.geometry, self._ladder.unit
        after = self.compact(state)
        bands = (state.num_cached - after.num_cached) // (shape.freed * unit)
        first = after.cursor - bands * shape.kept * unit
        lost = [u for u in range(shape.band) if u not in self._distinct[pattern]]
        starts = [first + (j * shape.band + u) * unit for j in range(bands) for u in lost]
        joined: SlotRanges = []
        for start in starts:
            if joined and joined[-1][1] == start:
                joined[-1] = (joined[-1][0], start + unit)
            else:
                joined.append((start, start + unit))
        return joined
