"""The paper's ladder (arXiv 2507.14204), in both geometries."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from lacache.cache import HookedCache, LaCache
from lacache.common.records import Record
from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.evals.methods.method import Method
from lacache.evals.methods.settings import (
    EVICT_BATCH,
    evict_batch_slots,
    settings_record,
    validate_share,
)
from lacache.models.model_info import model_info
from lacache.policies import Ladder, default_span_overlap
from lacache.policies.geometry import validate_span


@final
@dataclass(frozen=True)
class LadderMethod(Method):
    """Every layer keeps equally many tokens, but different old ones.

    Args:
        span: layers in a row that keep a token; without it, half of the layers.
        overlap: layers that neighbouring runs share; without it 0 beside a span, else four fifths
            of the span.
        sinks: first tokens, never evicted.
        recent: share of the capacity that no compaction touches; without it, half, or less where
            the sinks and one band need the room.
        evict_batch: share of the capacity that one compaction frees.
        geometry: "interleaved" (the released code) or "consecutive" (the paper's text).
        unit: neighbouring tokens that are kept or dropped together.
        window_layers: layers that drop their oldest tokens instead of thinning.
    """

    name: ClassVar[str] = "ladder"

    span: int | None = None
    overlap: int | None = None
    sinks: int = 4
    recent: float | None = None
    evict_batch: float = EVICT_BATCH
    geometry: str = "interleaved"
    unit: int = 1
    window_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.overlap is not None and self.span is None:
            raise ConfigError(
                f"overlap={self.overlap} says nothing without a span; try span={self.overlap + 1}"
            )
        validate_span(self.span or 1, self.overlap or 0, self.geometry)
        validate_int("sinks", self.sinks, 0)
        validate_int("unit", self.unit, 1)
        validate_share("evict_batch", self.evict_batch)
        if self.recent is not None:
            validate_share("recent", self.recent)

    def open(self, model: Any, *, capacity: int, dense: bool) -> HookedCache:
        """An empty ladder."""
        policy = self.policy(capacity, len(model_info(model).growing))
        return LaCache.from_model(model, policy, prefill="dense" if dense else "chunked")

    def policy(self, capacity: int, num_layers: int) -> Ladder:
        """The policy for a capacity in tokens, over layers with a growing cache."""
        if self.span is None:
            span, overlap = default_span_overlap(num_layers)
        else:
            span, overlap = self.span, self.overlap or 0
        return Ladder(
            capacity=capacity,
            span=span,
            overlap=overlap,
            sinks=self.sinks,
            recent=None if self.recent is None else int(self.recent * capacity),
            evict_batch=evict_batch_slots(self.evict_batch, capacity),
            geometry=self.geometry,
            unit=self.unit,
            window_layers=self.window_layers,
        )

    def record(self) -> Record:
        """Name and settings."""
        return settings_record(self.name, self)
