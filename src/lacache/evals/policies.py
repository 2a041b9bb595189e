"""The policies of the evaluation: those of the product and the baselines."""

import hashlib
from collections.abc import Iterable
from typing import Any

from lacache.cache import HookedCache, LaCache
from lacache.cache.lacache import Prefill
from lacache.evals.baselines import BASELINES, ScoredCache, ScoredPolicy
from lacache.models.fingerprint import model_shape
from lacache.policies import POLICIES, Policy, bind_policy, parse_policy

_AMPLE = 100_000


def parse_eval_policy(policy: object) -> Policy:
    """Return the policy that a text stands for, a baseline included.

    Raises:
        ConfigError: no such policy or setting, or a value out of range.
        InputError: a file that cannot be read.
    """
    return parse_policy(policy, (*POLICIES, *BASELINES))


def open_cache(
    model: Any,
    policy: Policy,
    capacity: int,
    *,
    dense: bool = False,
    kv_dtype: str | None = None,
) -> HookedCache:
    """Return an empty cache.

    Args:
        model: a causal language model of transformers.
        policy: what it keeps.
        capacity: tokens per layer, averaged over layers and KV heads; ignored by policies that
            take no budget.
        dense: prefill the first input with a full cache, and compact it then.
        kv_dtype: what keys and values are stored in; None is the model's own type.

    Raises:
        ConfigError: the policy cannot work with this capacity or model, or there is no such
            kv_dtype.
        UnsupportedModelError: the model's caches or positions are not understood.
    """
    if isinstance(policy, ScoredPolicy):
        return ScoredCache(model, policy, capacity, dense=dense, kv_dtype=kv_dtype)
    budget = capacity if policy.takes_budget else None
    prefill: Prefill = "dense" if dense else "chunked"
    return LaCache(model, budget, policy, prefill=prefill, kv_dtype=kv_dtype)


def smallest_capacity(model: Any, policies: Iterable[Policy]) -> int:
    """Return the least capacity that every policy with a schedule and a budget works with.

    Raises:
        ConfigError: one of them works with none.
    """
    return max(
        (
            policy.smallest_capacity(model_shape(model, policy))
            for policy in policies
            if policy.takes_budget and not isinstance(policy, ScoredPolicy)
        ),
        default=1,
    )


def policy_inputs_sha256(model: Any, policy: Policy) -> str:
    """Hash what a policy depends on besides its settings, a head profile; "" for nothing."""
    if not policy.needs_profile:
        return ""
    bound = bind_policy(
        policy, _AMPLE, model_shape(model, policy), bytes_per_token=1, prompt_tokens=1
    )
    return hashlib.sha256(str(bound.explicit()).encode()).hexdigest()
