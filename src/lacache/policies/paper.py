"""The ladder as the paper's released code runs it (github.com/GATECH-EIC/LaCache)."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

from lacache.common.validation import validate_int
from lacache.policies.geometry import Geometry, validate_depth, validate_span
from lacache.policies.ladder import Ladder, LadderSchedule
from lacache.policies.policy import SINKS, LayerPolicy


@final
@dataclass(frozen=True, kw_only=True)
class Paper(LayerPolicy):
    """A ladder that keeps what the released code keeps, token for token.

    It evicts as little at once as it can, so a chunked prefill goes nearly token by token. The
    code compacts right after the token that overflows, this schedule right before the next one:
    the same tokens, once a compaction that is due has run. Keys stand at their slots. The code
    holds up to `released_capacity` tokens for its `cache_size`.

    Args:
        span: layers in a row that keep a token (the paper's S); by default half of the layers.
        overlap: layers that neighbouring runs share (the paper's O).
        sinks: first tokens, never evicted (the code's `start_size`).

    Raises:
        ConfigError: a value out of range.
    """

    span: int | None = None
    overlap: int = 0
    sinks: int = SINKS

    names: ClassVar = {"paper": {}}
    evict_batch: ClassVar[int] = 1
    """As the released code; not a setting."""

    def __post_init__(self) -> None:
        validate_int("overlap", self.overlap, 0)
        if self.span is not None:
            validate_span(self.span, self.overlap, "interleaved")
        validate_int("sinks", self.sinks, 0)

    def schedule(self, num_layers: int, capacity: int) -> LadderSchedule:
        """Return the schedule over `num_layers` layers."""
        return self.resolved(num_layers, capacity).schedule(num_layers, capacity)

    def resolved(self, num_layers: int, capacity: int) -> Ladder:
        """Return the ladder that the released code runs, in slots."""
        span = self._span(num_layers)
        return Ladder(
            span=span,
            overlap=self.overlap,
            sinks=self.sinks,
            recent=num_layers + 1 - Geometry(num_layers, span, self.overlap).freed,
            evict_batch=self.evict_batch,
            positions="slots",
        )

    def with_evict_batch(self, evict_batch: int, num_layers: int, capacity: int) -> Ladder:
        """Return the ladder that the released code runs, with another evict batch."""
        return replace(self.resolved(num_layers, capacity), evict_batch=evict_batch)

    def released_capacity(self, cache_size: int, num_layers: int) -> int:
        """Return the most tokens that the released code holds with its `cache_size`."""
        freed = Geometry(num_layers, self._span(num_layers), self.overlap).freed
        return cache_size + freed // 2 + 1

    def _span(self, num_layers: int) -> int:
        validate_depth(num_layers)
        return num_layers // 2 if self.span is None else self.span
