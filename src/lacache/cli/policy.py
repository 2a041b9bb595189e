"""A plan from its name and the options that the user gave, without a model."""

from collections.abc import Sequence
from typing import Any

from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.policies.presets import PRESETS, SINKS, preset_source
from lacache.policies.registry import POLICIES
from lacache.policies.resolve import budget_source
from lacache.policies.schedule import Plan, Policy


def make_policy(name: str, num_layers: int, **options: Any) -> Policy:
    """The policy `name`; options that are None are left to its defaults.

    Without a span, the ladder's span and overlap follow from the number of layers.

    Raises:
        ConfigError: no such policy, an option that it does not have, or one out of range.
    """
    given = {option: value for option, value in options.items() if value is not None}
    capacity = given.pop("capacity", None)
    if capacity is not None:
        validate_int("capacity", capacity, 1)
    elif name in POLICIES and name != "full":
        raise _no_capacity(f"policy {name!r}")
    source = budget_source(capacity, name, given, num_layers=num_layers, bytes_per_token=1)
    return source(0)


def make_preset(
    name: str, num_heads: Sequence[int], *, capacity: int | None, sinks: int | None
) -> Plan:
    """The plan of the preset `name` for a model without a profile.

    Raises:
        ConfigError: no such preset, no capacity, or one that is too small.
    """
    if name in PRESETS and capacity is None:
        raise _no_capacity(f"preset {name!r}")
    source = preset_source(
        name,
        capacity,
        num_heads=num_heads,
        bytes_per_token=1,
        profile=None,
        sinks=SINKS if sinks is None else sinks,
    )
    return source(0)


def preset_note(name: str) -> str:
    """What a preset is for, and what a profile of the model would change."""
    preset = PRESETS[name]
    if not preset.share:
        return f"Preset {name}: {preset.about}."
    without = (
        "the layers that keep a long history are guessed by their depth"
        if preset.guess
        else "it is a ladder over all layers"
    )
    return (
        f"Preset {name}: {preset.about}. Without a profile of the model {without}; with one, which "
        "lacache calibrate makes, the KV heads that need a long history keep it."
    )


def _no_capacity(what: str) -> ConfigError:
    return ConfigError(f"{what} needs a capacity; try --capacity 512")
