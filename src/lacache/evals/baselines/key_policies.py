"""The baselines that evict by a score of keys and values; any implementation of attention will do.

Shapes: H KV heads, N tokens held, D head size. A larger score is kept longer. Scores are computed
in float32 whatever the type of the model.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.evals.baselines.policy import ScoredPolicy


class KeyPolicy(ScoredPolicy, ABC):
    """A score from keys and values alone."""

    @abstractmethod
    def score(self, keys: Tensor, values: Tensor) -> Tensor:
        """Return the score of each token [H, N] in each KV head; the lowest are evicted.

        Args:
            keys: rotated to their slots, as the model reads them [H, N, D].
            values: [H, N, D].
        """


@final
@dataclass(frozen=True)
class Knorm(KeyPolicy):
    """Keys of small norm stay, as they get much attention (arXiv 2406.11430)."""

    names: ClassVar = {"knorm": {}}

    def score(self, keys: Tensor, values: Tensor) -> Tensor:
        """Return minus the L2 norm of each key: `-|k_i|`; a rotation does not change it."""
        norms: Tensor = torch.linalg.vector_norm(keys.float(), dim=-1)
        return -norms


@final
@dataclass(frozen=True)
class KeyDiff(KeyPolicy):
    """Keys unlike the others stay, as they get much attention (arXiv 2504.15364 section 3)."""

    names: ClassVar = {"keydiff": {}}

    def score(self, keys: Tensor, values: Tensor) -> Tensor:
        """Return minus the cosine similarity of each key to the mean direction.

        `-cos(k_i, mean_j k_j/|k_j|)`, on keys after rotation, as a cache holds them.
        """
        keys = keys.float()
        anchor = normalize(keys, dim=-1).mean(dim=-2, keepdim=True)
        return -cosine_similarity(keys, anchor, dim=-1)


@final
@dataclass(frozen=True)
class LagKV(KeyPolicy):
    """Tokens that stand out from those that follow stay (arXiv 2504.04704).

    After the sinks the tokens are cut into partitions of `lag`. In each channel a token is scaled
    by least and greatest of the next partition, `(x - min) / (max - min)`; the standard deviation
    over the channels, a softmax over the partition, and the mean of that of keys and that of
    values say how much the token stands out. Each partition gives up the same share, so the score
    is the rank in it, as a share: 0, 1/lag, ... On keys after rotation.

    Args:
        lag: tokens of a partition; less where the capacity holds fewer than four of them, so that
            most of the cache can be compared with what follows.
    """

    lag: int = 128

    names: ClassVar = {"lagkv": {}}

    def __post_init__(self) -> None:
        super().__post_init__()
        validate_int("lag", self.lag, 1)

    def at(self, capacity: int) -> Self:
        """Return this policy with partitions that fit."""
        most = (capacity - self.sinks) // 4
        if most < 1:
            raise ConfigError(
                f"capacity={capacity} must be at least {self.sinks + 4} = sinks {self.sinks} + "
                f"four partitions; try capacity={self.sinks + 4}"
            )
        return replace(self, lag=min(self.lag, most))

    def protected(self, num_held: int) -> int:
        """Return the length of the last whole partition and of what comes after it."""
        return min(num_held, self.lag + (num_held - self.sinks) % self.lag)

    def score(self, keys: Tensor, values: Tensor) -> Tensor:
        """Return ranks in the partition; N >= sinks + 2 lag.

        They are 1 for the sinks, and for the last partition and what comes after, which have
        nothing to be compared with.
        """
        num_heads, num_held, _ = keys.shape
        start, lag = self.sinks, self.lag
        stop = start + (num_held - start) // lag * lag
        spread = _spread(keys[:, start:stop], lag) + _spread(values[:, start:stop], lag)
        rank = spread.argsort(dim=-1, stable=True).argsort(dim=-1)
        scores = torch.ones(num_heads, num_held, device=keys.device)
        scores[:, start : stop - lag] = rank.flatten(1) / lag
        return scores


def _spread(states: Tensor, lag: int) -> Tensor:
    """Return shares [H, P - 1, lag] of states [H, P lag, D]; the last partition has none."""
    parts = states.float().reshape(states.shape[0], -1, lag, states.shape[-1])
    here, following = parts[:, :-1], parts[:, 1:]
    least = following.amin(dim=-2, keepdim=True)
    greatest = following.amax(dim=-2, keepdim=True)
    # Only numbers of few bits can be all alike in a channel.
    scaled: Tensor = (here - least) / (greatest - least).clamp_min(1e-6)
    return scaled.std(dim=-1).softmax(dim=-1)
