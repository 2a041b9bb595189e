"""The cache that a command line asks for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from lacache.cli.layers import parse_layers
from lacache.core.budget import parse_budget
from lacache.core.ladder import LadderConfig

if TYPE_CHECKING:
    from lacache.cache import LaCache

DEFAULT_BUDGET = "512"


def default_refill(capacity: int, sinks: int) -> int:
    """Slots that one compaction frees, where the user gives no number.

    An eighth of the capacity, since a prompt is read in segments of up to this length; at least
    1, and no more than the sinks leave.
    """
    return max(1, min(capacity // 8, capacity - sinks))


@final
@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """What the user gave; None is the default of the policy.

    Raises:
        ConfigError: a budget or layers that cannot be read.
    """

    policy: str
    budget: str | None
    span: int | None = None
    overlap: int | None = None
    sinks: int | None = None
    recent: int | None = None
    refill: int | None = None
    geometry: str | None = None
    unit: int | None = None
    window_layers: str = ""
    prefill: str = "segmented"

    def __post_init__(self) -> None:
        # Before a model is loaded for nothing.
        parse_layers(self.window_layers)
        if self.budget is not None:
            parse_budget(self.budget)

    def make(self, model: Any, prompt_tokens: int) -> LaCache:
        """A new cache for `model` and a first prompt of that many tokens.

        Raises:
            ConfigError: the options cannot work for this model.
            UnsupportedModelError: the model's caches or positions are not understood.
        """
        if self.refill is not None or self.policy == "full":
            return self._make(model, self.refill)
        # What a budget in bytes or a share comes to is known to the cache alone.
        capacity = self._make(model, None).report().capacity
        share = parse_budget(self._budget() or "").share
        if share:
            capacity = max(capacity, math.ceil(share * prompt_tokens))
        sinks = LadderConfig.sinks if self.sinks is None else self.sinks
        return self._make(model, default_refill(capacity, sinks))

    def _budget(self) -> str | None:
        if self.budget is None and self.policy != "full":
            return DEFAULT_BUDGET
        return self.budget

    def _make(self, model: Any, refill: int | None) -> LaCache:
        from lacache.cache import LaCache

        return LaCache.from_model(
            model,
            budget=self._budget(),
            policy=self.policy,
            span=self.span,
            overlap=self.overlap,
            sinks=self.sinks,
            recent=self.recent,
            refill=refill,
            geometry=self.geometry,
            unit=self.unit,
            window_layers=parse_layers(self.window_layers) or None,
            prefill=self.prefill,  # type: ignore[arg-type]  # checked there
        )
