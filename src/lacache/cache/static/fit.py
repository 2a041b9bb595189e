"""A plan whose buffers fit a budget in bytes."""

from collections.abc import Callable

from lacache.cache.static.shape import StaticShape, bytes_per_token
from lacache.models.model_info import ModelInfo
from lacache.policies.budget import Budget, parse_budget
from lacache.policies.schedule import Plan


def fit_bytes(
    info: ModelInfo,
    budget: Budget | None,
    choose: Callable[[int], Plan],
    kv_dtype: str | None = None,
) -> Plan:
    """The plan for a budget, of which the buffers take no more than its bytes.

    Groups are allocated at their largest, which they may not all have at the same time; so a plan
    can take more bytes than its tokens alone (docs/adr/0009).

    Args:
        info: of the model.
        budget: in bytes; any other is left to `choose`.
        choose: the plan for a budget, given what a token takes over all growing layers.
        kv_dtype: see StaticShape.

    Raises:
        ConfigError: too few bytes for such a plan, or no such kv_dtype.
    """
    per_token = bytes_per_token(info, kv_dtype)
    limit = 0 if budget is None else parse_budget(budget).num_bytes
    while True:
        plan = choose(per_token)
        if not limit or (taken := StaticShape(info, plan, kv_dtype).growing_bytes) <= limit:
            return plan
        per_token = max(per_token + 1, -(-per_token * taken // limit))
