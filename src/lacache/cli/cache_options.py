"""The cache that a command line asks for, parsed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from lacache.common.validation import validate_prefill
from lacache.policies import Budget, Policy, parse_policy, validate_budget

if TYPE_CHECKING:
    from lacache.cache import LaCache

DEFAULT_BUDGET = "512"


@final
@dataclass(frozen=True)
class CacheOptions:
    """Which tokens a cache keeps, how many, and how a prompt is prefilled.

    Args:
        policy: which tokens are kept.
        budget: how many; None for a policy that takes no budget.
        prefill: "chunked" or "dense".
    """

    policy: Policy
    budget: Budget | None
    prefill: str = "chunked"

    @classmethod
    def parse(cls, budget: str | None, policy: str, prefill: str = "chunked") -> CacheOptions:
        """Return what a user gave, before a model is loaded for nothing.

        Raises:
            ConfigError: what no model could work with.
            InputError: a file with a policy that cannot be read.
        """
        validate_prefill(prefill)
        parsed = parse_policy(policy)
        if budget is None and parsed.takes_budget:
            budget = DEFAULT_BUDGET
        return cls(parsed, validate_budget(parsed, budget), prefill)

    def new_cache(self, model: Any) -> LaCache:
        """Return a new cache for `model`.

        Raises:
            ConfigError: the options cannot work for this model.
            UnsupportedModelError: the model's caches or positions are not understood.
        """
        from lacache.cache import LaCache

        return LaCache(model, self.budget, self.policy, prefill=self.prefill)  # type: ignore[arg-type]
