"""Choose the next token from logits."""

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lacache.core.checks import check_int
from lacache.core.errors import ConfigError

_LARGEST_SEED = 2**63 - 1  # what a torch generator takes
_COLDEST = 0.01


@final
@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen; the filters act in the order of transformers' `generate`.

    Args:
        temperature: 0 takes the most likely token, and the filters below are not used; else
            logits are divided by it, from 0.01 on.
        top_k: keep the `top_k` most likely tokens; 0 keeps all.
        top_p: keep the fewest most likely tokens whose probabilities add up to it; 1 keeps all.
        min_p: drop tokens less likely than this share of the most likely one; 0 keeps all.
        seed: the same seed gives the same choices; None a different one each time.

    Raises:
        ConfigError: a value out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        # Colder, float32 logits would overflow.
        if self.temperature != 0 and not _COLDEST <= self.temperature < math.inf:
            raise ConfigError(
                f"temperature={self.temperature} must be 0 (greedy) or at least {_COLDEST}; "
                "try temperature=0.7"
            )
        check_int("top_k", self.top_k, 0)
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} must be in (0, 1]; try top_p=0.95")
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p={self.min_p} must be in [0, 1]; try min_p=0.05")
        if self.seed is not None:
            check_int("seed", self.seed, 0)
            if self.seed > _LARGEST_SEED:
                raise ConfigError(f"seed={self.seed} must be at most {_LARGEST_SEED}; try seed=0")


@final
class Sampler:
    """Chooses token after token; holds the state of the random numbers."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._greedy = sampling.temperature == 0
        self._warpers = LogitsProcessorList()
        if self._greedy:
            return
        self._warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k > 0:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p > 0:
            self._warpers.append(MinPLogitsWarper(sampling.min_p))
        self._generator = torch.Generator(device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def choose(self, logits: Tensor) -> int:
        """The next token from the last token's logits [1, V]."""
        if self._greedy:
            return int(logits.argmax())
        probabilities = self.probabilities(logits)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))

    def probabilities(self, logits: Tensor) -> Tensor:
        """What tokens are drawn by [1, V] unless greedy, from logits [1, V]."""
        # No warper in the list looks at the tokens so far.
        none: Any = torch.empty(1, 0, dtype=torch.long, device=logits.device)
        return self._warpers(none, logits.float()).softmax(dim=-1)
