"""The policies that a search tries for a model, at a capacity."""

from collections.abc import Iterable
from typing import Any

from lacache.errors import ConfigError
from lacache.evals.policies import parse_eval_policy
from lacache.evals.tuning.result import FULL, STREAMING
from lacache.models.fingerprint import model_profile, model_shape
from lacache.policies import (
    BoundPolicy,
    ModelShape,
    Policy,
    bind_policy,
    default_span_overlap,
    parse_policy,
)
from lacache.policies.members import format_members

_LADDERS = (
    "ladder",
    "ladder:recent=0.75",
    "ladder:unit=8",
    "ladder:span={span}:overlap=0",
    "ladder:recent=0.25",
    "ladder:window_layers=0-{last_early}",
    "ladder:span={span}:overlap={overlap}:geometry=consecutive",
    "ladder:unit=16:span={span}:overlap=0",
)
_RETRIEVAL = (
    "balanced",
    "recall",
    "balanced:window=0.65",
    "balanced:share=0.16",
    "balanced:window=0.8",
    "recall:share=0.16",
    "balanced:share=0.3:most=0.0",
    "balanced:share=0.08:most=0.0:window=0.75",
    "balanced:unit=8",
    "retrieval:heads={layers}:window=0.5",
)
_LAYERS_SHARE = 0.3


def default_texts(shape: ModelShape) -> list[str]:
    """Return policies to try, the most promising first, as time may not allow all of them.

    Args:
        shape: of the model; without a profile there are only ladders.

    Raises:
        ConfigError: fewer than two layers.
    """
    span, overlap = default_span_overlap(shape.num_layers)
    settings: dict[str, Any] = {"span": span, "overlap": overlap, "last_early": span - 1}
    retrieval: tuple[str, ...] = ()
    if shape.profile is not None:
        layers = shape.profile.layers()
        layers = layers[: max(1, round(_LAYERS_SHARE * len(layers)))]
        settings["layers"] = format_members(sorted(layers))
        retrieval = _RETRIEVAL
    mixed = [text for pair in zip(retrieval, _LADDERS, strict=False) for text in pair]
    rest = (*retrieval[len(_LADDERS) :], *_LADDERS[len(retrieval) :])
    return [text.format(**settings) for text in (*mixed, *rest)]


def bind_candidate(model: Any, policy: Policy, capacity: int) -> BoundPolicy:
    """Return what a policy keeps in a model.

    Raises:
        ConfigError: it cannot work with this capacity or model, or keeps what no schedule says.
    """
    return bind_policy(
        policy,
        capacity if policy.takes_budget else None,
        model_shape(model, policy),
        bytes_per_token=1,
        prompt_tokens=1,
    )


def default_candidates(model: Any, capacity: int) -> list[Policy]:
    """Return the policies of `default_texts` that work with a capacity, equal ones once.

    Raises:
        ConfigError: the model has too few layers.
    """
    shape = ModelShape(model_shape(model, FULL).num_heads, model_profile(model))
    found: dict[object, Policy] = {}
    for policy in map(parse_policy, default_texts(shape)):
        try:
            groups = bind_candidate(model, policy, capacity).explicit()
        except ConfigError:
            continue  # too small a capacity for it: others take less room
        found.setdefault(groups, policy)
    return list(found.values())


def given_candidates(model: Any, capacity: int, texts: Iterable[str]) -> list[Policy]:
    """Return the policies of a user's texts, each once, without the two that are always measured.

    Raises:
        ConfigError: one is unknown, has no schedule or cannot work with the capacity or model.
    """
    found = list(dict.fromkeys(map(parse_eval_policy, texts)))
    for policy in found:
        bind_candidate(model, policy, capacity)
    return [policy for policy in found if policy not in (STREAMING, FULL)]
