"""A policy from its name and the options that the user gave."""

from dataclasses import fields
from typing import Any

from lacache.core.errors import ConfigError
from lacache.core.geometry import default_span_overlap
from lacache.core.registry import POLICIES
from lacache.core.schedule import Policy


def make_policy(name: str, num_layers: int, **options: Any) -> Policy:
    """The policy `name`; options that are None are left to its defaults.

    Without a span, the ladder's span and overlap follow from the number of layers.

    Raises:
        ConfigError: no such policy, an option that it does not have, or one out of range.
    """
    if name not in POLICIES:
        raise ConfigError(f"policy={name!r} must be one of {', '.join(POLICIES)}; try 'ladder'")
    policy = POLICIES[name]
    known = {field.name for field in fields(policy)}  # type: ignore[arg-type]
    given = {option: value for option, value in options.items() if value is not None}
    for option in given:
        if option not in known:
            raise ConfigError(f"policy {name!r} has no {option}; leave it out")
    if "capacity" in known and "capacity" not in given:
        raise ConfigError(f"policy {name!r} needs a capacity; try --capacity 512")
    if "span" in known and "span" not in given:
        span, overlap = default_span_overlap(num_layers)
        given = {"span": span, "overlap": overlap} | given
    return policy(**given)
