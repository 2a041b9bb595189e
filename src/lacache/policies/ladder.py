"""The ladder: the paper's policy (arXiv 2507.14204 sections 3.2 and 3.3)."""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, final

from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.policies.geometry import Geometry, default_span_overlap, validate_span
from lacache.policies.members import MEMBERS_FORM, format_members
from lacache.policies.policy import (
    DEFAULT_POSITIONS,
    EVICT_BATCH,
    SINKS,
    LayerPolicy,
    in_slots,
    validate_positions,
    validate_slots,
)
from lacache.policies.schedule import Schedule, SlotRanges, State


@final
@dataclass(frozen=True, kw_only=True)
class Ladder(LayerPolicy):
    """Every layer keeps equally many tokens, but different old ones.

    Args:
        span: layers in a row that keep a token (the paper's S); by default half of the layers.
        overlap: layers that neighbouring runs share (the paper's O); by default 0, but four
            fifths of a span that is not given either.
        sinks: first tokens, never evicted.
        recent: newest tokens that no compaction touches, or a share of the capacity; by default
            half of it, or less where the sinks and one band need the room.
        evict_batch: slots that each compaction evicts, or a share of the capacity; rounded up to
            whole bands. 1 evicts as little at once as the paper's code.
        geometry: "interleaved" (the released code) or "consecutive" (the paper's text).
        unit: neighbouring tokens that are kept or evicted together.
        window_layers: layers, counted over those with a growing cache, that evict their oldest
            tokens instead.
        positions: "original" or "slots"; see `lacache.policies.schedule.POSITIONS`.

    Raises:
        ConfigError: from the constructor for what is wrong at any depth, from `schedule` for what
            is wrong at that number of layers or capacity.
    """

    span: int | None = None
    overlap: int | None = None
    sinks: int = SINKS
    recent: float | None = None
    evict_batch: float = EVICT_BATCH
    geometry: str = "interleaved"
    unit: int = 1
    window_layers: tuple[int, ...] = field(default=(), metadata=MEMBERS_FORM)
    positions: str = DEFAULT_POSITIONS

    names: ClassVar = {"ladder": {}}

    def __post_init__(self) -> None:
        validate_int("sinks", self.sinks, 0)
        validate_slots("evict_batch", self.evict_batch, 1)
        validate_int("unit", self.unit, 1)
        validate_positions(self.positions)
        if self.recent is not None:
            validate_slots("recent", self.recent, 0)
        if self.span is not None:
            validate_span(self.span, self.overlap or 0, self.geometry)
        elif self.overlap is not None:
            validate_int("overlap", self.overlap, 0)
        if self.span is None:
            validate_span(1, 0, self.geometry)
        if isinstance(self.window_layers, str) or not isinstance(self.window_layers, Iterable):
            raise ConfigError(
                f"window_layers={self.window_layers!r} must be a sequence of layer numbers; try "
                "window_layers=(0, 1)"
            )
        object.__setattr__(self, "window_layers", tuple(self.window_layers))
        for layer in self.window_layers:
            if isinstance(layer, tuple):
                raise ConfigError(
                    f"window_layers={format_members((layer,))} is a KV head, and whole layers are "
                    "needed; try window_layers=0-2+5"
                )
            validate_int("window_layers", layer, 0)
        object.__setattr__(self, "window_layers", tuple(sorted(set(self.window_layers))))

    @classmethod
    def like(cls, other: object, **changes: Any) -> "Ladder":
        """Return a ladder with the settings that another object has as fields of the same names.

        Args:
            other: such as another policy; what it lacks has its default.
            changes: settings with other values.
        """
        names = {f.name for f in fields(cls)} & set(vars(other))
        return cls(**{name: getattr(other, name) for name in names} | changes)

    def schedule(self, num_layers: int, capacity: int) -> "LadderSchedule":
        """Return the schedule over `num_layers` layers."""
        geometry = self._geometry(num_layers)
        if self.window_layers and self.window_layers[-1] >= num_layers:
            raise ConfigError(
                f"window_layers={self.window_layers[-1]} must be below the number of layers "
                f"{num_layers}; try window_layers up to {num_layers - 1}"
            )
        band = geometry.band * self.unit
        recent = (
            max(0, min(capacity // 2, capacity - self.sinks - band))
            if self.recent is None
            else in_slots(self.recent, capacity, least=0)
        )
        smallest = self.sinks + recent + band
        if capacity < smallest:
            raise ConfigError(
                f"capacity={capacity} must be at least {smallest} = sinks {self.sinks} + "
                f"recent {recent} + one band of {geometry.band} x unit {self.unit}; "
                f"try capacity={smallest}"
            )
        return LadderSchedule(
            geometry,
            capacity=capacity,
            sinks=self.sinks,
            recent=recent,
            evict_batch=in_slots(self.evict_batch, capacity),
            unit=self.unit,
            window_layers=self.window_layers,
            positions=self.positions,
        )

    def resolved(self, num_layers: int, capacity: int) -> "Ladder":
        """Return this ladder with every setting given, in slots."""
        schedule = self.schedule(num_layers, capacity)
        return replace(
            self,
            span=schedule.geometry.span,
            overlap=schedule.geometry.overlap,
            recent=schedule.recent,
            evict_batch=schedule.evict_batch,
        )

    def _geometry(self, num_layers: int) -> Geometry:
        if self.span is None:
            span, overlap = default_span_overlap(num_layers)
        else:
            span, overlap = self.span, 0
        if self.overlap is not None:
            overlap = self.overlap
        return Geometry(num_layers, span, overlap, self.geometry)


@final
class LadderSchedule(Schedule):
    """A ladder over a number of layers. The pattern of a layer is its phase, or the window's.

    Args:
        geometry: bands and phases.
        capacity: most tokens that a layer holds.
        sinks: first slots, never evicted.
        recent: newest slots that no compaction touches.
        evict_batch: slots that one compaction should evict; rounded up to whole bands, and at most
            what a pass evicts.
        unit: neighbouring slots that are kept or evicted together.
        window_layers: layers that evict their oldest tokens instead.
        positions: where keys stand.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        capacity: int,
        sinks: int,
        recent: int,
        evict_batch: int,
        unit: int,
        window_layers: tuple[int, ...],
        positions: str,
    ) -> None:
        self.geometry = geometry
        self.capacity = capacity
        self.sinks = sinks
        self.recent = recent
        self.unit = unit
        self.positions = positions
        self._band, self._kept = geometry.band * unit, geometry.kept * unit
        self.evict_unit = geometry.freed * unit
        most = (capacity - recent - sinks) // self._band
        # Always as many, so that chunks between compactions are equally long.
        self._bands = min(-(-evict_batch // self.evict_unit), most)
        self.evict_batch = self._bands * self.evict_unit
        # One past the last phase.
        self._window = geometry.freed + 1
        self.patterns = tuple(
            self._window if layer in window_layers else geometry.phase(layer)
            for layer in range(geometry.num_layers)
        )

    def start(self) -> State:
        """Return the state of an empty cache, whose first pass starts after the sinks."""
        return State(0, 0, self.sinks)

    def compact(self, state: State) -> State:
        """Thin the next bands from the cursor on."""
        cursor = self._first_slot(state)
        return State(
            state.num_seen,
            state.num_cached - self.evict_batch,
            cursor + self._bands * self._kept,
        )

    def evicted_slots(self, state: State, pattern: int) -> SlotRanges:
        """Return the slots outside the kept run of each thinned band; a window's oldest slots."""
        if pattern == self._window:
            return [(self.sinks, self.sinks + self.evict_batch)]
        cursor = self._first_slot(state)
        first = pattern * self.unit
        last = first + self._kept
        ranges = []
        for start in range(cursor, cursor + self._bands * self._band, self._band):
            if first > 0:
                ranges.append((start, start + first))
            if last < self._band:
                ranges.append((start + last, start + self._band))
        return ranges

    def _first_slot(self, state: State) -> int:
        """Return from which slot on this compaction thins; a pass with too few bands is over."""
        left = state.num_cached - self.recent - state.cursor
        return state.cursor if left >= self._bands * self._band else self.sinks
