"""A policy from its name and the options that the user gave."""

from typing import Any

from lacache.core.checks import check_int
from lacache.core.errors import ConfigError
from lacache.core.registry import POLICIES
from lacache.core.resolve import budget_source
from lacache.core.schedule import Policy


def make_policy(name: str, num_layers: int, **options: Any) -> Policy:
    """The policy `name`; options that are None are left to its defaults.

    Without a span, the ladder's span and overlap follow from the number of layers.

    Raises:
        ConfigError: no such policy, an option that it does not have, or one out of range.
    """
    given = {option: value for option, value in options.items() if value is not None}
    capacity = given.pop("capacity", None)
    if capacity is not None:
        check_int("capacity", capacity, 1)
    elif name in POLICIES and name != "full":
        raise ConfigError(f"policy {name!r} needs a capacity; try --capacity 512")
    source = budget_source(capacity, name, given, num_layers=num_layers, bytes_per_token=1)
    return source(0)
