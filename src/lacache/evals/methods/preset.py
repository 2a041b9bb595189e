"""A preset, as users get it."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, ClassVar, final

from lacache.cache import HookedCache, LaCache
from lacache.common.records import Record
from lacache.errors import ConfigError
from lacache.evals.methods.method import Method
from lacache.evals.methods.settings import settings_record
from lacache.models.fingerprint import model_profile
from lacache.models.model_info import model_info
from lacache.policies.plan_record import plan_record
from lacache.policies.presets import DEFAULT_PRESET, PRESETS, preset_plan
from lacache.policies.schedule import Plan

_CAPACITY = 1_000


@final
@dataclass(frozen=True)
class PresetMethod(Method):
    """What `LaCache.from_model(model, budget, preset=...)` makes.

    Args:
        preset: "balanced", "local", "global" or "paper".
    """

    name: ClassVar[str] = "preset"

    preset: str = DEFAULT_PRESET

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ConfigError(
                f"preset={self.preset!r} must be one of {', '.join(PRESETS)}; try {DEFAULT_PRESET}"
            )

    def open(self, model: Any, *, capacity: int, dense: bool) -> HookedCache:
        """An empty cache."""
        heads = model_info(model).num_heads
        plan = preset_plan(self.preset, capacity, heads, model_profile(model))
        return LaCache.from_model(model, plan, prefill="dense" if dense else "chunked")

    def inputs_sha256(self, model: Any) -> str:
        """SHA-256 of the plan for a certain capacity: it follows the profile and the preset."""
        heads = model_info(model).num_heads
        return plan_sha256(preset_plan(self.preset, _CAPACITY, heads, model_profile(model)))

    def record(self) -> Record:
        """Name and settings."""
        return settings_record(self.name, self)


def plan_sha256(plan: Plan) -> str:
    """SHA-256 of a plan's record."""
    return hashlib.sha256(json.dumps(plan_record(plan), sort_keys=True).encode()).hexdigest()
