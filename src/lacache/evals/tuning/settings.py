"""What a search is given."""

import math
from dataclasses import dataclass
from typing import final

from lacache.common.validation import validate_int
from lacache.errors import ConfigError


def validate_minutes(minutes: float) -> None:
    """Raise ConfigError unless that is a time to measure in."""
    if not 0 < minutes < math.inf:
        raise ConfigError(f"minutes={minutes} must be above 0 and finite; try --minutes 10")


@final
@dataclass(frozen=True)
class Settings:
    """What a search is given, besides the model and the text.

    Args:
        capacity: tokens per layer, the same for all candidates.
        length: tokens of a stretch, above the capacity.
        minutes: of measuring, all starts of the same search together.

    Raises:
        ConfigError: a value out of range, or a cache that a stretch does not fill.
    """

    capacity: int
    length: int
    minutes: float

    def __post_init__(self) -> None:
        validate_int("capacity", self.capacity, 1)
        validate_int("length", self.length, 2)
        validate_minutes(self.minutes)
        if self.length <= self.capacity:
            raise ConfigError(
                f"length={self.length} must be above the capacity {self.capacity}, else nothing "
                f"is ever dropped; try --length {4 * self.capacity}"
            )
