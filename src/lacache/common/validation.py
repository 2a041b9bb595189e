"""Validation shared by all settings. It needs no torch, so errors come before heavy imports."""

import os
import sys

from lacache.common.packages import require_modules
from lacache.errors import ConfigError

DTYPES = ("auto", "bfloat16", "float16", "float32")
KV_DTYPES = {"int8": 8, "int4": 4}
"""By name, the bits that each number of a key or value can be stored in."""
WEIGHTS = ("int8",)


def validate_int(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raise ConfigError unless `value` is an integer (not a bool) from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name}={value!r} must be an integer; try {name}={least}")
    if value < least:
        raise ConfigError(f"{name}={value} must be at least {least}; try {name}={least}")
    if most is not None and value > most:
        raise ConfigError(f"{name}={value} must be at most {most:,}; try {name}={most}")


def validate_number(name: str, value: object, example: float) -> None:
    """Raise ConfigError unless `value` is a number (not a bool)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name}={value!r} must be a number; try {name}={example}")


def validate_prefill(value: object) -> None:
    """Raise ConfigError unless `value` names a way to prefill."""
    if value not in ("chunked", "dense"):
        raise ConfigError(f"prefill={value!r} must be 'chunked' or 'dense'; try 'chunked'")


def validate_dtype(name: str) -> None:
    """Raise ConfigError unless `name` is a type that a model can be loaded in."""
    if name not in DTYPES:
        raise ConfigError(f"dtype={name} must be one of {', '.join(DTYPES)}; try dtype=auto")


def validate_threads(threads: int) -> None:
    """Raise ConfigError unless `threads` is from 1 to the number of cores."""
    validate_int("threads", threads, 1)
    cores = os.cpu_count() or threads
    if threads > cores:
        raise ConfigError(
            f"threads={threads} must be at most the number of cores {cores}; try threads=1"
        )


def validate_kv_dtype(kv_dtype: str | None) -> None:
    """Raise ConfigError unless keys and values can be stored as `kv_dtype`; None is allowed."""
    if kv_dtype is not None and not (isinstance(kv_dtype, str) and kv_dtype in KV_DTYPES):
        raise ConfigError(
            f"kv_dtype={kv_dtype!r} must be None, for the model's own type, or one of "
            f"{', '.join(KV_DTYPES)}; try 'int8'"
        )


def validate_weights(weights: str | None) -> None:
    """Raise unless a model's weights can be converted to `weights`; None leaves them as they are.

    Raises:
        ConfigError: no such type of weights.
        MissingExtraError: torchao is not installed.
    """
    if weights is None:
        return
    if weights not in WEIGHTS:
        raise ConfigError(
            f"weights={weights!r} must be None, for the model's own, or one of "
            f"{', '.join(WEIGHTS)}; try 'int8'"
        )
    require_modules("torchao", why=f"weights={weights!r}", extra="int8")


def physical_bytes() -> int:
    """Return the size of this machine's memory; a huge number where it is unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize
