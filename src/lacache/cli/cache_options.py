"""The cache that a command line asks for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from lacache.cli.layers import parse_layers
from lacache.common.validation import validate_prefill
from lacache.errors import ConfigError
from lacache.policies.budget import parse_budget
from lacache.policies.ladder import Ladder
from lacache.policies.plan_record import load_plan
from lacache.policies.presets import refuse_beside_preset
from lacache.policies.resolve import default_evict_batch, validate_options
from lacache.policies.schedule import Plan
from lacache.policies.streaming import Streaming

if TYPE_CHECKING:
    from lacache.cache import LaCache

DEFAULT_BUDGET = "512"


@final
@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """What the user gave; None is the default of the policy.

    Raises:
        ConfigError: what no model could work with.
        InputError: the plan cannot be read.
    """

    budget: str | None
    preset: str | None = None
    policy: str | None = None
    plan: Path | None = None
    span: int | None = None
    overlap: int | None = None
    sinks: int | None = None
    recent: int | None = None
    evict_batch: int | None = None
    geometry: str | None = None
    unit: int | None = None
    window_layers: str = ""
    prefill: str = "chunked"

    def __post_init__(self) -> None:
        # Before a model is loaded for nothing.
        parse_layers(self.window_layers)
        validate_prefill(self.prefill)
        if self.budget is not None:
            parse_budget(self.budget)
        if self.plan is not None:
            self._validate_beside_plan()
            _ = self._read_plan  # what is wrong with it is told now
            return
        given = {name: v for name, v in self._ladder_options().items() if v is not None}
        if self.preset is not None:
            refuse_beside_preset(self.preset, self.policy, given)
        if self.sinks is not None:
            given["sinks"] = self.sinks
        validate_options(self._budget(), "ladder" if self.policy is None else self.policy, given)

    @cached_property
    def _read_plan(self) -> Plan | None:
        # Once, as it may come from a pipe.
        return None if self.plan is None else load_plan(self.plan)

    def _validate_beside_plan(self) -> None:
        given = {"budget": self.budget, "preset": self.preset, "policy": self.policy}
        given |= {"sinks": self.sinks} | self._ladder_options()
        named = [name for name, value in given.items() if value is not None]
        if named:
            raise ConfigError(
                f"{', '.join(named)} cannot be given beside --plan; set it in {self.plan}"
            )

    def make(self, model: Any, prompt_tokens: int) -> LaCache:
        """A new cache for `model` and a first prompt of that many tokens.

        Raises:
            ConfigError: the options cannot work for this model.
            InputError: the plan cannot be read.
            UnsupportedModelError: the model's caches or positions are not understood.
        """
        from lacache.cache import LaCache
        from lacache.models.model_info import model_info

        plan = self.plan_for(model, prompt_tokens, model_info(model).bytes_per_token)
        return LaCache.from_model(model, plan, prefill=self.prefill)  # type: ignore[arg-type]

    def plan_for(self, model: Any, prompt_tokens: int, bytes_per_token: int) -> Plan:
        """The plan for `model` and a first prompt of that many tokens.

        Args:
            model: of transformers.
            prompt_tokens: what a share is of.
            bytes_per_token: what a token takes over all layers that a plan rules.

        Raises:
            ConfigError: the options cannot work for this model.
            InputError: the plan cannot be read.
            UnsupportedModelError: the model's caches or positions are not understood.
        """
        from lacache.cache.choice import choose_plan

        if self._read_plan is not None:
            return self._read_plan
        options = self._ladder_options()

        def choose(evict_batch: int | None) -> Plan:
            return choose_plan(
                model,
                None,
                budget=self._budget(),
                preset=self.preset,
                policy=self.policy,
                options={"sinks": self.sinks, **options, "evict_batch": evict_batch},
                bytes_per_token=bytes_per_token,
            )(prompt_tokens)

        plan = choose(self.evict_batch)
        others = {name for name, value in options.items() if value is not None}
        is_preset = self.preset is not None or (self.policy is None and not others)
        if is_preset or self.evict_batch is not None or not isinstance(plan, Ladder | Streaming):
            return plan
        return choose(default_evict_batch(plan.capacity, plan.sinks))

    def plan_budget(self) -> str | None:
        """What bounds the plan; None where the plan was given."""
        return None if self.plan is not None else self._budget()

    def _ladder_options(self) -> dict[str, Any]:
        """All but the sinks, which presets have too."""
        return {
            "span": self.span,
            "overlap": self.overlap,
            "recent": self.recent,
            "evict_batch": self.evict_batch,
            "geometry": self.geometry,
            "unit": self.unit,
            "window_layers": parse_layers(self.window_layers) or None,
        }

    def _budget(self) -> str | None:
        if self.budget is None and self.policy != "full":
            return DEFAULT_BUDGET
        return self.budget
