"""The ladder: the paper's policy (arXiv 2507.14204 sections 3.2 and 3.3)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.policies.geometry import Geometry, validate_span
from lacache.policies.schedule import Policy, Schedule, SlotRanges, State


@final
@dataclass(frozen=True, kw_only=True)
class Ladder(Policy):
    """Every layer keeps equally many tokens, but different old ones.

    Args:
        capacity: most tokens a layer ever holds, the newest included.
        span: layers in a row that keep a token (the paper's S).
        overlap: layers that neighbouring runs share (the paper's O).
        sinks: first tokens, never evicted.
        recent: newest tokens that no compaction touches; by default half of the capacity, or less
            where the sinks and one band need the room.
        evict_batch: slots that one compaction should free; 1 thins as little as the paper's code.
        geometry: "interleaved" (the released code) or "consecutive" (the paper's text).
        unit: neighbouring tokens that are kept or dropped together.
        window_layers: layers that drop their oldest tokens instead of thinning.

    Raises:
        ConfigError: from the constructor for what is wrong at any depth, from `bind` for what is
            wrong at that number of layers.
    """

    capacity: int
    span: int
    overlap: int = 0
    sinks: int = 4
    recent: int | None = None
    evict_batch: int = 1
    geometry: str = "interleaved"
    unit: int = 1
    window_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        validate_int("capacity", self.capacity, 1)
        validate_int("sinks", self.sinks, 0)
        validate_int("evict_batch", self.evict_batch, 1)
        validate_int("unit", self.unit, 1)
        if self.recent is not None:
            validate_int("recent", self.recent, 0)
        validate_span(self.span, self.overlap, self.geometry)
        if isinstance(self.window_layers, str) or not isinstance(self.window_layers, Iterable):
            raise ConfigError(
                f"window_layers={self.window_layers!r} must be a sequence of layer numbers; try "
                "window_layers=(0, 1)"
            )
        object.__setattr__(self, "window_layers", tuple(self.window_layers))
        for layer in self.window_layers:
            validate_int("window_layers", layer, 0)
        object.__setattr__(self, "window_layers", tuple(sorted(set(self.window_layers))))

    @classmethod
    def released(
        cls, cache_size: int, start_size: int, span: int, overlap: int, num_layers: int
    ) -> "Ladder":
        """The configuration that keeps what the authors' released code keeps, token for token.

        Their code compacts right after the token that overflows, this schedule right before the
        next one: the same tokens, once a compaction that is due has run.
        """
        freed = Geometry(num_layers, span, overlap).freed
        return cls(
            capacity=cache_size + freed // 2 + 1,
            span=span,
            overlap=overlap,
            sinks=start_size,
            recent=num_layers + 1 - freed,
        )

    def smallest_capacity(self, num_layers: int) -> int:
        """Sinks, recent tokens and one band."""
        return self.sinks + (self.recent or 0) + self._geometry(num_layers).band * self.unit

    def bind(self, num_layers: int) -> "LadderSchedule":
        """The schedule over `num_layers` layers."""
        geometry = self._geometry(num_layers)
        if self.window_layers and self.window_layers[-1] >= num_layers:
            raise ConfigError(
                f"window_layers={self.window_layers[-1]} must be below the number of layers "
                f"{num_layers}; try window_layers up to {num_layers - 1}"
            )
        smallest = self.smallest_capacity(num_layers)
        if self.capacity < smallest:
            raise ConfigError(
                f"capacity={self.capacity} must be at least {smallest} = sinks {self.sinks} + "
                f"recent {self.recent or 0} + one band of {geometry.band} x unit {self.unit}; "
                f"try capacity={smallest}"
            )
        return LadderSchedule(self, geometry)

    def _geometry(self, num_layers: int) -> Geometry:
        return Geometry(num_layers, self.span, self.overlap, self.geometry)


@final
class LadderSchedule(Schedule):
    """A ladder over a number of layers. The pattern of a layer is its phase, or the window's."""

    def __init__(self, config: Ladder, geometry: Geometry) -> None:
        self.config = config
        self.capacity = config.capacity
        self.geometry = geometry
        unit = config.unit
        self._band, self._kept, self._freed = (
            geometry.band * unit,
            geometry.kept * unit,
            geometry.freed * unit,
        )
        self.recent = (
            min(config.capacity // 2, config.capacity - config.sinks - self._band)
            if config.recent is None
            else config.recent
        )
        self._window = geometry.freed + 1
        self.patterns = tuple(
            self._window if layer in config.window_layers else geometry.phase(layer)
            for layer in range(geometry.num_layers)
        )

    def start(self) -> State:
        """Empty, with nothing to thin before the sinks."""
        return State(0, 0, self.config.sinks)

    def compact(self, state: State) -> State:
        """Thin the next bands after the cursor."""
        cursor, bands = self._bands(state)
        return State(
            state.num_seen, state.num_cached - bands * self._freed, cursor + bands * self._kept
        )

    def evicted_slots(self, state: State, pattern: int) -> SlotRanges:
        """In each thinned band the units around the kept run; in a window the oldest tokens."""
        cursor, bands = self._bands(state)
        if pattern == self._window:
            return [(self.config.sinks, self.config.sinks + bands * self._freed)]
        first = pattern * self.config.unit
        last = first + self._kept
        runs = []
        for start in range(cursor, cursor + bands * self._band, self._band):
            if first > 0:
                runs.append((start, start + first))
            if last < self._band:
                runs.append((start + last, start + self._band))
        return runs

    def _bands(self, state: State) -> tuple[int, int]:
        """From which slot on, and how many bands, this compaction thins."""
        limit = state.num_cached - self.recent
        cursor = state.cursor
        available = (limit - cursor) // self._band
        if available <= 0:
            cursor = self.config.sinks
            available = (limit - cursor) // self._band
        return cursor, min(-(-self.config.evict_batch // self._freed), available)
