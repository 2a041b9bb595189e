"""Budgets: tokens, a share of the prompt, or bytes, resolved to a capacity in tokens."""

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import final

from lacache.errors import ConfigError

_UNITS = {"B": 1}
_UNITS |= {f"{p}B": 1000**i for i, p in enumerate("KMGT", 1)}
_UNITS |= {f"{p}iB": 1024**i for i, p in enumerate("KMGT", 1)}
_EXAMPLES = "try 512 (tokens), 0.5 (share of the prompt) or '64MiB' (bytes)"
_RULE = "must be a number of tokens, a share or a number of bytes"


@final
@dataclass(frozen=True)
class Budget:
    """A size of cache. Exactly one of the three is set; the others are 0.

    Args:
        tokens: per layer, averaged over KV heads.
        share: of the first prompt.
        num_bytes: of one sequence, over all layers with a growing cache.
    """

    tokens: int = 0
    share: float = 0.0
    num_bytes: int = 0

    def __post_init__(self) -> None:
        if sum(map(bool, (self.tokens, self.share, self.num_bytes))) != 1:
            raise ConfigError(f"a budget is one of tokens, share and bytes; {_EXAMPLES}")
        if self.tokens < 0:
            raise ConfigError(f"budget={self.tokens} must be at least 1 token; {_EXAMPLES}")
        if not 0.0 <= self.share <= 1.0:
            raise ConfigError(f"budget={self.share} as a share must be in (0, 1]; {_EXAMPLES}")
        if self.num_bytes < 0:
            raise ConfigError(f"budget={self.num_bytes}B must be at least 1 byte; {_EXAMPLES}")

    def __str__(self) -> str:
        if self.tokens or self.share:
            # Never with an exponent, which the parser does not take.
            return str(self.tokens) if self.tokens else format(Decimal(str(self.share)), "f")
        for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
            if self.num_bytes % 2**power == 0:
                return f"{self.num_bytes >> power}{unit}"
        return f"{self.num_bytes}B"

    def capacity(self, *, bytes_per_token: int, prompt_tokens: int, smallest: int) -> int:
        """Return the tokens per layer.

        Tokens stay as they are. A share is rounded up, and never below `smallest`, so that a short
        prompt works too. Bytes are rounded down to whole tokens.

        Raises:
            ConfigError: tokens or bytes are below `smallest`.
        """
        if self.share:
            # A share such as 0.14 times 50 is a little above 7 in floating point.
            return max(math.ceil(self.share * prompt_tokens - 1e-9), smallest)
        tokens = self.tokens or self.num_bytes // bytes_per_token
        if tokens >= smallest:
            return tokens
        if self.tokens:
            raise ConfigError(
                f"budget={tokens} must be at least {smallest} tokens for this policy and model; "
                f"try budget={smallest}"
            )
        raise ConfigError(
            f"a budget of {self.num_bytes} bytes holds {tokens} tokens of {bytes_per_token} bytes, "
            f"and at least {smallest} are needed; try '{smallest * bytes_per_token}B'"
        )


BudgetLike = Budget | int | float | str


def parse_budget(value: object) -> Budget:
    """Parse a budget: an int is tokens, a float in (0, 1] a share, a text with a unit bytes.

    Texts without a unit are the number that they spell, as a command line gives them.

    Raises:
        ConfigError: anything else.
    """
    if isinstance(value, Budget):
        return value
    if isinstance(value, bool):
        raise ConfigError(f"budget={value!r} {_RULE}; {_EXAMPLES}")
    if isinstance(value, int):
        if value < 1:
            raise ConfigError(f"budget={value} must be at least 1 token; {_EXAMPLES}")
        return Budget(tokens=value)
    if isinstance(value, float):
        if not 0.0 < value <= 1.0:
            raise ConfigError(f"budget={value} as a share must be in (0, 1]; {_EXAMPLES}")
        return Budget(share=value)
    if isinstance(value, str) and len(value) <= 40:
        return _parse_text(value.strip())
    shown = repr(value) if isinstance(value, str) else str(value)
    raise ConfigError(f"budget={shown[:42]} {_RULE}; {_EXAMPLES}")


def _parse_text(text: str) -> Budget:
    if re.fullmatch(r"[+-]?[0-9]+", text):
        return parse_budget(int(text))
    if re.fullmatch(r"[+-]?([0-9]+\.[0-9]*|\.[0-9]+)", text):
        return parse_budget(float(text))
    units = {name.lower(): size for name, size in _UNITS.items()}
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)", text)
    if match is None or match[2].lower() not in units:
        raise ConfigError(
            f"budget={text!r} {_RULE} with one of the units {', '.join(_UNITS)}; {_EXAMPLES}"
        )
    num_bytes = int(float(match[1]) * units[match[2].lower()])
    if num_bytes < 1:
        raise ConfigError(f"budget={text!r} must be at least 1 byte; {_EXAMPLES}")
    return Budget(num_bytes=num_bytes)
