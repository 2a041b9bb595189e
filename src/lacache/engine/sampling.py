"""Settings of sampling, validated, without torch."""

import math
from dataclasses import dataclass
from typing import final

from lacache.common.validation import validate_int, validate_number
from lacache.errors import ConfigError

_LARGEST_SEED = 2**63 - 1  # what a torch generator takes
# Beyond these, float32 logits would overflow.
_COLDEST = 0.01
_LEAST_PENALTY, _LARGEST_PENALTY = 0.01, 100.0


@final
@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of sampling; the filters act in the order of transformers' `generate`.

    Args:
        temperature: 0 is greedy, and ignores the settings below but the repetition penalty; other
            values, from 0.01 on, divide the logits.
        top_k: keep the `top_k` most likely tokens; 0 keeps all.
        top_p: keep the fewest most likely tokens whose probabilities add up to it; 1 keeps all.
        min_p: exclude tokens less likely than this share of the most likely one; 0 keeps all.
        repetition_penalty: positive logits of tokens of the prompt or the output are
            divided by it, negative ones multiplied, once each (CTRL, arXiv 1909.05858, section
            4.1); from 0.01 to 100, and 1 changes nothing. It also acts when greedy.
        seed: equal seeds give equal choices; None takes a different seed each time.

    Raises:
        ConfigError: a value out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        validate_number("temperature", self.temperature, 0.7)
        validate_number("top_p", self.top_p, 0.95)
        validate_number("min_p", self.min_p, 0.05)
        validate_number("repetition_penalty", self.repetition_penalty, 1.1)
        if self.temperature != 0 and not _COLDEST <= self.temperature < math.inf:
            raise ConfigError(
                f"temperature={self.temperature} must be 0 (greedy) or at least {_COLDEST}; "
                "try temperature=0.7"
            )
        validate_int("top_k", self.top_k, 0)
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} must be in (0, 1]; try top_p=0.95")
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p={self.min_p} must be in [0, 1]; try min_p=0.05")
        if not _LEAST_PENALTY <= self.repetition_penalty <= _LARGEST_PENALTY:
            raise ConfigError(
                f"repetition_penalty={self.repetition_penalty} must be from {_LEAST_PENALTY} to "
                f"{_LARGEST_PENALTY:g}, and 1 is none; try repetition_penalty=1.1"
            )
        if self.seed is not None:
            validate_int("seed", self.seed, 0)
            if self.seed > _LARGEST_SEED:
                raise ConfigError(f"seed={self.seed} must be at most {_LARGEST_SEED}; try seed=0")
