"""What the settings of methods share."""

import math
from dataclasses import asdict
from typing import Any

from lacache.common.records import Record
from lacache.errors import ConfigError

EVICT_BATCH = 0.125
"""Share of the capacity that one compaction frees, in every method: so that mean bytes compare."""


def validate_share(name: str, value: object) -> None:
    """Raise ConfigError unless `value` is a number in [0, 1)."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 <= value < 1:  # type: ignore[operator]
        raise ConfigError(f"{name}={value!r} must be a share in [0, 1); try {name}=0.125")


def evict_batch_slots(evict_batch: float, capacity: int) -> int:
    """The slots that one compaction frees: that share of the capacity, rounded up, at least 1."""
    return max(1, math.ceil(evict_batch * capacity))


def settings_record(name: str, made: Any) -> Record:
    """A name and the fields of a frozen dataclass, as JSON holds them."""
    settings = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(made).items()
    }
    return {"name": name, **settings}
