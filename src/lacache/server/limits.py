"""What a server allows."""

import math
from dataclasses import dataclass
from typing import final

from lacache.common.validation import validate_int, validate_number
from lacache.errors import ConfigError


@final
@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of each request, and of all that wait.

    Args:
        prompt_tokens: most tokens of a prompt.
        new_tokens: most tokens that are written to one request.
        waiting: most texts that wait for a row; further requests are told to come again.
        seconds: longest time that a text may take, its wait included.
        body_bytes: most bytes of a request.

    Raises:
        ConfigError: a value out of range.
    """

    prompt_tokens: int = 1_000_000
    new_tokens: int = 100_000
    waiting: int = 64
    seconds: float = 3_600.0
    body_bytes: int = 16 * 2**20

    def __post_init__(self) -> None:
        validate_int("prompt_tokens", self.prompt_tokens, 1)
        validate_int("new_tokens", self.new_tokens, 1)
        validate_int("waiting", self.waiting, 0)
        validate_int("body_bytes", self.body_bytes, 1)
        validate_number("seconds", self.seconds, 60.0)
        if not 0 < self.seconds < math.inf:
            raise ConfigError(f"seconds={self.seconds} must be above 0; try seconds=60")
