"""The baselines that evict by a score of attention weights.

Shapes: H KV heads, G query heads to a KV head, Q new tokens, N tokens held, M queries remembered. A
larger score is kept longer. Scores are computed in float32 whatever the type of the model.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, pad

from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.evals.baselines.policy import ScoredPolicy
from lacache.policies.policy import in_slots, validate_slots


class AttentionPolicy(ScoredPolicy, ABC):
    """A score from attention weights, kept from forward to forward."""

    @property
    @abstractmethod
    def num_queries(self) -> int | None:
        """Return how many of the newest tokens' attention the score needs; None for all."""

    def protected(self, num_held: int) -> int:
        """Return `num_queries`: the tokens whose attention is the score."""
        return self.num_queries or 0

    def remember(self, memory: Tensor | None, weights: Tensor) -> Tensor:
        """Return what is known after a forward [H, M', N].

        Here the attention of the newest `num_queries` tokens, averaged over the query heads of a
        KV head, oldest first; 0 for tokens that came later.

        Args:
            memory: what was known of the tokens held before [H, M, N - Q], if anything.
            weights: attention of the new tokens [H, G, Q, N].
        """
        window = self.num_queries or 0
        queries = weights[:, :, -window:].float().mean(dim=1)
        if memory is not None and queries.shape[1] < window:
            earlier = pad(memory, (0, weights.shape[-2]))
            queries = torch.cat([earlier, queries], dim=1)[:, -window:]
        return queries

    @abstractmethod
    def score(self, memory: Tensor) -> Tensor:
        """Return the score of each token [H, N] in each KV head, from what is known [H, M, N]."""


@final
@dataclass(frozen=True)
class TOVA(AttentionPolicy):
    """Tokens that the newest one attends to stay (arXiv 2401.06104 section 3), and it itself.

    All heads of a layer keep the same tokens.
    """

    names: ClassVar = {"tova": {}}

    @property
    def num_queries(self) -> int:
        """Return 1: the newest token alone."""
        return 1

    def score(self, memory: Tensor) -> Tensor:
        """Return the attention of the newest token, averaged over all heads: the same in each."""
        return memory[:, -1].mean(dim=0, keepdim=True).expand(memory.shape[0], -1)


@final
@dataclass(frozen=True)
class H2O(AttentionPolicy):
    """Tokens that got most attention so far stay (arXiv 2306.14048 section 4), and the newest.

    Args:
        recent: newest tokens, never evicted, or a share of the capacity; half as in the paper.
    """

    recent: float = 0.5

    names: ClassVar = {"h2o": {}}

    def __post_init__(self) -> None:
        super().__post_init__()
        validate_slots("recent", self.recent, 0)
        shares = [x for x in (self.recent, self.evict_batch) if isinstance(x, float)]
        if sum(shares) >= 1:
            raise ConfigError(
                f"recent={self.recent} and evict_batch={self.evict_batch} must be below 1 "
                "together, as they are shares of one capacity; try recent=0.5"
            )

    @property
    def num_queries(self) -> None:
        """Return None: every token's attention."""

    def at(self, capacity: int) -> Self:
        """Return this policy with the window in tokens."""
        return replace(self, recent=in_slots(self.recent, capacity, least=0))

    def protected(self, num_held: int) -> int:
        """Return the length of the window."""
        return in_slots(self.recent, num_held, least=0)

    def remember(self, memory: Tensor | None, weights: Tensor) -> Tensor:
        """Return the attention that each token got so far [H, 1, N].

        Averaged over the query heads of a KV head, where the paper has one to one.
        """
        total = weights.float().sum(dim=2).mean(dim=1, keepdim=True)
        if memory is not None:
            total[..., : memory.shape[-1]] += memory
        return total

    def score(self, memory: Tensor) -> Tensor:
        """Return the sum as it stands."""
        return memory[:, 0]


@dataclass(frozen=True)
class SnapKV(AttentionPolicy):
    """Tokens that the newest ones attend to stay, with neighbours (arXiv 2404.14469 section 4).

    Args:
        window: newest tokens whose attention counts, never evicted; 8 as in the code of the
            PyramidKV paper's comparison, as a longer one sees more of the text than of a short
            question.
        kernel: slots to pool over, odd.
    """

    window: int = 8
    kernel: int = 5

    names: ClassVar = {"snapkv": {}}

    def __post_init__(self) -> None:
        super().__post_init__()
        validate_int("window", self.window, 1)
        validate_int("kernel", self.kernel, 1)
        if self.kernel % 2 == 0:
            raise ConfigError(
                f"kernel={self.kernel} must be odd, to have a middle; try kernel={self.kernel + 1}"
            )

    @property
    def num_queries(self) -> int:
        """Return the length of the window."""
        return self.window

    def score(self, memory: Tensor) -> Tensor:
        """Return the mean attention of the window to what is before it; infinite in the window.

        It is pooled: a mean over `kernel` neighbouring slots, 0 beyond the ends.
        """
        window = memory.shape[1]
        before = memory[..., : memory.shape[-1] - window].mean(dim=1)
        pooled = avg_pool1d(before, self.kernel, stride=1, padding=self.kernel // 2)
        return pad(pooled, (0, window), value=torch.inf)


@final
@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """SnapKV with fewer tokens the deeper the layer (arXiv 2406.02069).

    The mean of the layers' capacities is the capacity. As a compaction frees equally many slots in
    every layer, no layer goes below sinks, window and one evict_batch.

    Args:
        beta: how steeply capacities fall, at least 1; 20 as in the paper's code.
    """

    beta: float = 20.0

    names: ClassVar = {"pyramidkv": {}}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta >= 1:
            raise ConfigError(f"beta={self.beta} must be at least 1; try beta=20")

    def capacities(self, capacity: int, num_layers: int) -> tuple[int, ...]:
        """Return capacities that fall with depth; see `pyramid`."""
        floor = self.sinks + self.window + self.slots_per_compaction(capacity)
        return pyramid(capacity, num_layers, window=self.window, beta=self.beta, floor=floor)


def pyramid(
    capacity: int, num_layers: int, *, window: int, beta: float, floor: int
) -> tuple[int, ...]:
    """Return capacities that fall in a straight line from the first layer to the last.

    Source: arXiv 2406.02069 section 4: beside its window, the last layer keeps the share `1/beta`
    of the mean, and the first layer what makes up for that.

    Args:
        capacity: the mean.
        num_layers: layers with a growing cache.
        window: newest tokens that every layer keeps.
        beta: how steep.
        floor: what no layer goes below, as far as the mean allows.

    Returns:
        One capacity for each layer; their sum is `num_layers * capacity`.
    """
    if num_layers == 1:
        return (capacity,)
    least = max(window + int((capacity - window) / beta), floor)
    drop = 2 * max(0, capacity - least)
    greatest = capacity + drop // 2
    upper = [greatest - drop * layer // (num_layers - 1) for layer in range(num_layers // 2)]
    # The lower half mirrors the upper one, so that rounding to whole tokens adds up to nothing.
    lower = [2 * capacity - tokens for tokens in reversed(upper)]
    return (*upper, *[capacity] * (num_layers % 2), *lower)
