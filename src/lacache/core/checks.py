"""Checks that every configuration shares."""

from lacache.core.errors import ConfigError


def check_int(name: str, value: object, least: int) -> None:
    """Raise ConfigError unless `value` is an integer (not a bool) of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name}={value!r} must be an integer; try {name}={least}")
    if value < least:
        raise ConfigError(f"{name}={value} must be at least {least}; try {name}={least}")


def check_number(name: str, value: object, example: float) -> None:
    """Raise ConfigError unless `value` is a number (not a bool)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name}={value!r} must be a number; try {name}={example}")


def check_prefill(value: object) -> None:
    """Raise ConfigError unless `value` is a way to read a prompt."""
    if value not in ("segmented", "dense"):
        raise ConfigError(f"prefill={value!r} must be 'segmented' or 'dense'; try 'segmented'")
