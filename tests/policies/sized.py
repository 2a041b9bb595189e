"""A policy with a budget, as `LaCache` and `Engine` take them: `LaCache(model, *sized)`."""

from typing import Any

from lacache.models.fingerprint import model_shape
from lacache.models.model_info import model_info
from lacache.policies import (
    BoundPolicy,
    LayerPolicy,
    ModelShape,
    Policy,
    Schedule,
    bind_policy,
)

Sized = tuple[int | None, Policy]
"""Tokens per layer, None for a policy that takes no budget, and the policy."""


def schedule(sized: Sized, num_layers: int) -> Schedule:
    capacity, policy = sized
    assert isinstance(policy, LayerPolicy)
    assert capacity is not None
    return policy.schedule(num_layers, capacity)


def bind(sized: Sized, num_heads: tuple[int, ...]) -> BoundPolicy:
    capacity, policy = sized
    return bind_policy(policy, capacity, ModelShape(num_heads), bytes_per_token=1, prompt_tokens=1)


def bind_to(model: Any, sized: Sized) -> BoundPolicy:
    """What a policy keeps in a model, its head profile included."""
    capacity, policy = sized
    return bind_policy(
        policy,
        capacity,
        model_shape(model, policy),
        bytes_per_token=model_info(model).bytes_per_token,
        prompt_tokens=1,
    )
