"""The policies that a search tries for a model, at a capacity."""

from collections.abc import Iterable
from typing import Any

from lacache.cache import LaCache
from lacache.errors import ConfigError
from lacache.evals.methods.full import FullCache
from lacache.evals.methods.method import Method
from lacache.evals.methods.registry import parse_method
from lacache.evals.methods.streaming import StreamingMethod
from lacache.models.fingerprint import model_profile
from lacache.models.model_info import model_info
from lacache.policies.geometry import default_span_overlap
from lacache.policies.groups import Groups
from lacache.policies.registry import POLICIES
from lacache.policies.retrieval_heads import RetrievalHeads
from lacache.policies.schedule import Plan

_PLANS: tuple[type[Plan], ...] = (*POLICIES.values(), RetrievalHeads, Groups)
_LADDERS = (
    "ladder",
    "ladder:recent=0.75",
    "ladder:unit=8",
    "ladder:span={span},overlap=0",
    "ladder:recent=0.25",
    "ladder:window_layers=0-{last_early}",
    "ladder:span={span},overlap={overlap},geometry=consecutive",
    "ladder:unit=16,span={span},overlap=0",
)
_HISTORIES = (
    "history:window=0.5",
    "history",
    "history:share=0.3,window=0.5",
    "history:share=0.08,window=0.5",
    "history:window=0.75",
    "history:share=0.3,window=0.25",
    "history:share=0.08,window=0.75",
    "history:share=0.3,window=0.75",
    "history:window=0.5,unit=8",
    "history:members=layers,share=0.3,window=0.5",
    "history:share=0.5,window=0.5",
)


def default_specs(num_layers: int, *, has_profile: bool) -> list[str]:
    """Return specs to try, the most promising first, as time may not allow all of them.

    Args:
        num_layers: layers with a growing cache, at least two.
        has_profile: whether the model has a head profile.

    Raises:
        ConfigError: too few layers.
    """
    span, overlap = default_span_overlap(num_layers)
    ladders = [spec.format(span=span, overlap=overlap, last_early=span - 1) for spec in _LADDERS]
    histories = list(_HISTORIES) if has_profile else []
    mixed = [spec for pair in zip(histories, ladders, strict=False) for spec in pair]
    return mixed + histories[len(ladders) :] + ladders[len(histories) :]


def has_profile(model: Any) -> bool:
    """Return whether a model, or one of the same configuration, was calibrated."""
    return model_profile(model) is not None


def plan_of(model: Any, policy: Method, capacity: int) -> Plan:
    """Return the plan of a policy in a model, for `LaCache.from_model`.

    Raises:
        ConfigError: it cannot work with this capacity or model, or is no plan that can be stored.
    """
    cache = policy.open(model, capacity=capacity, dense=False)
    if not isinstance(cache, LaCache) or not isinstance(cache.policy, _PLANS):
        raise ConfigError(
            f"policy {policy.name} has no plan that could be recommended; try streaming, ladder or "
            "history"
        )
    return cache.policy


def default_candidates(model: Any, capacity: int) -> list[Method]:
    """Return the policies of `default_specs` that work with a capacity, each plan once.

    Raises:
        ConfigError: the model has too few layers.
    """
    specs = default_specs(len(model_info(model).growing), has_profile=has_profile(model))
    found: dict[Plan, Method] = {}
    for policy in map(parse_method, specs):
        try:
            found.setdefault(plan_of(model, policy, capacity), policy)
        except ConfigError:
            continue  # too small a capacity for it: others take less room
    return list(found.values())


def given_candidates(model: Any, capacity: int, specs: Iterable[str]) -> list[Method]:
    """Return the policies of a user's specs, each once, without the two that are always measured.

    Raises:
        ConfigError: one is unknown, has no plan or cannot work with the capacity.
    """
    found = list(dict.fromkeys(map(parse_method, specs)))
    for policy in found:
        plan_of(model, policy, capacity)
    return [policy for policy in found if policy not in (StreamingMethod(), FullCache())]
