"""A bound policy whose buffers fit a budget in bytes."""

from collections.abc import Callable

from lacache.cache.static.shape import StaticShape, bytes_per_token
from lacache.models.model_info import ModelInfo
from lacache.policies import BoundPolicy, Budget


def fit_bytes(
    info: ModelInfo,
    budget: Budget | None,
    bind: Callable[[int], BoundPolicy],
    kv_dtype: str | None = None,
) -> BoundPolicy:
    """Return what is kept for a budget, of which the buffers take no more than its bytes.

    Groups are allocated at their largest, which they may not all have at the same time; so they
    can take more bytes than their tokens alone (docs/adr/0009).

    Args:
        info: of the model.
        budget: in bytes; any other is left to `bind`.
        bind: the bound policy, given what a token takes over all growing layers.
        kv_dtype: see StaticShape.

    Raises:
        ConfigError: too few bytes for the policy, or no such kv_dtype.
    """
    per_token = bytes_per_token(info, kv_dtype)
    limit = 0 if budget is None else budget.num_bytes
    while True:
        bound = bind(per_token)
        if not limit or (taken := StaticShape(info, bound, kv_dtype).growing_bytes) <= limit:
            return bound
        per_token = max(per_token + 1, -(-per_token * taken // limit))
