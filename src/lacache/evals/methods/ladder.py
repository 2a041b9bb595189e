"""The paper's ladder (arXiv 2507.14204), in both geometries."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from lacache.cache import LaCache, ReadingCache
from lacache.cache.facts import model_facts
from lacache.core import LadderConfig, default_span_overlap
from lacache.core.checks import check_int
from lacache.core.errors import ConfigError
from lacache.core.geometry import check_span
from lacache.evals.methods.method import Method
from lacache.evals.methods.settings import REFILL, check_share, refill_slots, settings_record
from lacache.evals.records import Record


@final
@dataclass(frozen=True)
class Ladder(Method):
    """Every layer keeps equally many tokens, but different old ones.

    Args:
        span: layers in a row that keep a token; without it, half of the layers.
        overlap: layers that neighbouring runs share; without it 0 beside a span, else four fifths
            of the span.
        sinks: first tokens, never evicted.
        recent: share of the capacity that no compaction touches; without it, half, or less where
            the sinks and one band need the room.
        refill: share of the capacity that one compaction frees.
        geometry: "interleaved" (the released code) or "consecutive" (the paper's text).
        unit: neighbouring tokens that are kept or dropped together.
        window_layers: layers that drop their oldest tokens instead of thinning.
    """

    name: ClassVar[str] = "ladder"

    span: int | None = None
    overlap: int | None = None
    sinks: int = 4
    recent: float | None = None
    refill: float = REFILL
    geometry: str = "interleaved"
    unit: int = 1
    window_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.overlap is not None and self.span is None:
            raise ConfigError(
                f"overlap={self.overlap} says nothing without a span; try span={self.overlap + 1}"
            )
        check_span(self.span or 1, self.overlap or 0, self.geometry)
        check_int("sinks", self.sinks, 0)
        check_int("unit", self.unit, 1)
        check_share("refill", self.refill)
        if self.recent is not None:
            check_share("recent", self.recent)

    def open(self, model: Any, *, capacity: int, dense: bool) -> ReadingCache:
        """An empty ladder."""
        policy = self.policy(capacity, len(model_facts(model).growing))
        return LaCache.from_model(model, policy, prefill="dense" if dense else "segmented")

    def policy(self, capacity: int, num_layers: int) -> LadderConfig:
        """The policy for a capacity in tokens, over layers with a growing cache."""
        if self.span is None:
            span, overlap = default_span_overlap(num_layers)
        else:
            span, overlap = self.span, self.overlap or 0
        return LadderConfig(
            capacity=capacity,
            span=span,
            overlap=overlap,
            sinks=self.sinks,
            recent=None if self.recent is None else int(self.recent * capacity),
            refill=refill_slots(self.refill, capacity),
            geometry=self.geometry,
            unit=self.unit,
            window_layers=self.window_layers,
        )

    def record(self) -> Record:
        """Name and settings."""
        return settings_record(self.name, self)
