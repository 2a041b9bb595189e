"""From what a user says to a policy: a ready one, or a budget with a policy's name and options."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from lacache.errors import ConfigError
from lacache.policies.budget import Budget, parse_budget
from lacache.policies.geometry import default_span_overlap
from lacache.policies.registry import POLICIES
from lacache.policies.schedule import Plan, Policy

PolicySource = Callable[[int], Plan]
"""The policy or groups, given the number of tokens of the first prompt (a share needs it)."""


def default_evict_batch(capacity: int, sinks: int) -> int:
    """Slots that one compaction frees, where the user gives no number.

    An eighth of the capacity, since a prompt is read in segments of up to this length; at least
    1, and no more than the sinks leave.
    """
    return max(1, min(capacity // 8, capacity - sinks))


def policy_source(
    config: Plan | Budget | None,
    budget: Budget | None,
    name: str,
    options: Mapping[str, Any],
    *,
    num_layers: int,
    bytes_per_token: int,
) -> PolicySource:
    """Read what a user gave for a model.

    Args:
        config: a policy, groups, or a budget.
        budget: a budget, if `config` is none.
        name: which policy a budget is for.
        options: the policy's fields besides the capacity, as far as given.
        num_layers: layers with a growing cache.
        bytes_per_token: keys and values of one token over these layers.

    Raises:
        ConfigError: what was given cannot work, or contradicts itself.
    """
    if isinstance(config, Plan):
        given = [*options, *(["budget"] if budget is not None else [])]
        if given:
            raise ConfigError(
                f"{', '.join(given)} cannot be given beside a {type(config).__name__}; set "
                "it in there"
            )
        return lambda num_tokens: config
    return budget_source(
        one_budget(config, budget),
        name,
        options,
        num_layers=num_layers,
        bytes_per_token=bytes_per_token,
    )


def one_budget(first: Budget | None, second: Budget | None) -> Budget | None:
    """The one that was given, or none.

    Raises:
        ConfigError: both were.
    """
    if first is not None and second is not None:
        raise ConfigError(f"two budgets were given, {first!r} and {second!r}; give one")
    return first if second is None else second


def budget_source(
    budget: Budget | None,
    name: str,
    options: Mapping[str, Any],
    *,
    num_layers: int,
    bytes_per_token: int,
) -> Callable[[int], Policy]:
    """As `policy_source`, for a budget."""
    validate_options(budget, name, options)
    make: Callable[..., Policy] = POLICIES[name]
    if budget is None:
        return lambda num_tokens: make()
    parsed = parse_budget(budget)
    if "span" in _fields(name) - options.keys():
        span, overlap = default_span_overlap(num_layers)
        options = {"span": span, "overlap": overlap} | dict(options)
    smallest = make(capacity=parsed.tokens or 1 << 40, **options).smallest_capacity(num_layers)

    def for_prompt(num_tokens: int) -> Policy:
        capacity = parsed.capacity(
            bytes_per_token=bytes_per_token, prompt_tokens=num_tokens, smallest=smallest
        )
        return make(capacity=capacity, **options)

    return for_prompt


def validate_options(budget: Budget | None, name: str, options: Mapping[str, Any]) -> None:
    """Refuse what is wrong for a model of any depth.

    Raises:
        ConfigError: no such policy, a field that it does not have, or a value out of range.
    """
    if name not in POLICIES:
        raise ConfigError(f"policy={name!r} must be one of {', '.join(POLICIES)}; try 'ladder'")
    known = _fields(name)
    for option in options:
        if option not in known:
            raise ConfigError(f"policy {name!r} has no {option}; leave it out")
    if "capacity" not in known:
        if budget is not None:
            raise ConfigError(f"policy {name!r} has no budget; leave budget={budget!r} out")
        return
    if budget is None:
        raise ConfigError("no budget was given; try budget=512, 0.5 (share) or '64MiB'")
    make: Callable[..., Policy] = POLICIES[name]
    # Where the depth of the model decides the span, no overlap is too large yet.
    span = {"span": sys.maxsize} if "span" in known - options.keys() else {}
    make(capacity=parse_budget(budget).tokens or sys.maxsize, **span, **options)


def _fields(policy: str) -> set[str]:
    return {field.name for field in fields(POLICIES[policy])}  # type: ignore[arg-type]
