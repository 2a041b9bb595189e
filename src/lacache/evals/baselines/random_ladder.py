"""Random ladders: each layer keeps units by chance, as many and as often as the ladder does.

Source: the Pareto experiment of arXiv 2507.14204 section 4, random patterns against the ladder at
the same bytes.
"""

import random
from dataclasses import dataclass
from typing import final

from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.policies import Ladder, Policy, Schedule, State
from lacache.policies.ladder import LadderSchedule
from lacache.policies.schedule import SlotRanges

Units = tuple[int, ...]
"""Which units of every band a layer keeps, in increasing order."""


@final
@dataclass(frozen=True)
class RandomLadder(Policy):
    """A ladder whose layers keep random units of each band, the same ones in every band.

    Args:
        ladder: whose bands, counts and cursor are followed; its geometry says nothing here.
        seed: of the choice of units.

    Raises:
        ConfigError: a ladder with window layers.
    """

    ladder: Ladder
    seed: int = 0

    def __post_init__(self) -> None:
        validate_int("seed", self.seed, 0)
        if self.ladder.window_layers:
            raise ConfigError(
                f"window_layers={self.ladder.window_layers} keep no units by chance; leave them out"
            )

    def smallest_capacity(self, num_layers: int) -> int:
        """The ladder's."""
        return self.ladder.smallest_capacity(num_layers)

    def bind(self, num_layers: int) -> "UnitSchedule":
        """The schedule over `num_layers` layers."""
        ladder = self.ladder.bind(num_layers)
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
        """The ladder's."""
        return self._ladder.start()

    def compact(self, state: State) -> State:
        """The ladder's."""
        return self._ladder.compact(state)

    def evicted_slots(self, state: State, pattern: int) -> SlotRanges:
        """In each thinned band the units that layers of this pattern do not keep."""
        shape, unit = self._ladder.geometry, self._ladder.config.unit
        after = self.compact(state)
        bands = (state.num_cached - after.num_cached) // (shape.freed * unit)
        first = after.cursor - bands * shape.kept * unit
        lost = [u for u in range(shape.band) if u not in self._distinct[pattern]]
        starts = [first + (j * shape.band + u) * unit for j in range(bands) for u in lost]
        return _join([(start, start + unit) for start in starts])


def _join(runs: SlotRanges) -> SlotRanges:
    """Increasing runs, with those that touch made one."""
    joined: SlotRanges = []
    for start, stop in runs:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined
