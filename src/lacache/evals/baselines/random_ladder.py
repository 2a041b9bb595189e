"""Random ladders: each layer keeps units by chance, as many and as often as the ladder does.

Source: the Pareto experiment of arXiv 2507.14204 section 4, random patterns against the ladder at
the same bytes.
"""

import random
from dataclasses import dataclass
from typing import ClassVar, final

from lacache.common.validation import validate_int
from lacache.policies import State
from lacache.policies.ladder import LadderSchedule
from lacache.policies.ladder_variant import LadderVariant, LadderVariantSchedule
from lacache.policies.schedule import SlotRanges

Units = tuple[int, ...]
"""Which units of every band a layer keeps, in increasing order."""


@final
@dataclass(frozen=True, kw_only=True)
class RandomLadder(LadderVariant):
    """A ladder whose layers keep random units of each band, the same ones in every band.

    Args:
        seed: of the choice of units; another seed is another pattern of the same bytes.

    Raises:
        ConfigError: a value out of range.
    """

    seed: int = 0

    names: ClassVar = {"random-ladder": {}}

    def __post_init__(self) -> None:
        validate_int("seed", self.seed, 0)
        super().__post_init__()

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
class UnitSchedule(LadderVariantSchedule):
    """A ladder's counts and cursor, with any units of a band for each layer.

    Args:
        ladder: a schedule without window layers.
        units: for each layer, `ladder.geometry.kept` of the units 0 to `ladder.geometry.band - 1`.
    """

    def __init__(self, ladder: LadderSchedule, units: list[Units]) -> None:
        self._distinct = sorted(set(units))
        super().__init__(ladder, tuple(self._distinct.index(kept) for kept in units))

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
