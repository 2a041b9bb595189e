"""The baselines that evict by score, each with its settings and its score."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

from torch import Tensor

from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.evals.baselines.policy import AttentionPolicy, KeyPolicy
from lacache.evals.baselines.scores import (
    accumulated,
    keydiff,
    knorm,
    lagkv,
    last_queries,
    snapkv,
    tova,
)
from lacache.policies.policy import in_slots, validate_slots


@final
@dataclass(frozen=True)
class Knorm(KeyPolicy):
    """Keys of small norm stay (arXiv 2406.11430). No newest tokens are protected."""

    names: ClassVar = {"knorm": {}}

    def protected(self, num_held: int) -> int:
        """Return 0: no newest tokens are protected."""
        return 0

    def score(self, keys: Tensor, values: Tensor) -> Tensor:
        """Return the score that `scores.knorm` defines."""
        return knorm(keys)


@final
@dataclass(frozen=True)
class KeyDiff(KeyPolicy):
    """Keys unlike the others stay (arXiv 2504.15364). No newest tokens are protected."""

    names: ClassVar = {"keydiff": {}}

    def protected(self, num_held: int) -> int:
        """Return 0: no newest tokens are protected."""
        return 0

    def score(self, keys: Tensor, values: Tensor) -> Tensor:
        """Return the score that `scores.keydiff` defines."""
        return keydiff(keys)


@final
@dataclass(frozen=True)
class LagKV(KeyPolicy):
    """Tokens that stand out from those that follow stay (arXiv 2504.04704).

    Args:
        sinks: first tokens, not in any partition.
        evict_batch: slots that one compaction frees, or a share of the capacity.
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
        """Return the score that `scores.lagkv` defines."""
        return lagkv(keys, values, sinks=self.sinks, lag=self.lag)


@final
@dataclass(frozen=True)
class TOVA(AttentionPolicy):
    """Tokens that the newest one attends to stay (arXiv 2401.06104), and that one itself.

    All heads of a layer keep the same tokens.
    """

    names: ClassVar = {"tova": {}}

    @property
    def num_queries(self) -> int:
        """Return 1: the newest token alone."""
        return 1

    def protected(self, num_held: int) -> int:
        """Return 1, the newest token."""
        return 1

    def remember(self, memory: Tensor | None, weights: Tensor) -> Tensor:
        """Return the newest token's attention [H, 1, N]."""
        return last_queries(memory, weights, 1)

    def score(self, memory: Tensor) -> Tensor:
        """Return the score that `scores.tova` defines."""
        return tova(memory)


@final
@dataclass(frozen=True)
class H2O(AttentionPolicy):
    """Tokens that got most attention so far stay (arXiv 2306.14048), and the newest ones.

    Args:
        sinks: first tokens, never evicted.
        evict_batch: slots that one compaction frees, or a share of the capacity.
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
        """Return the attention that each token got so far [H, 1, N]."""
        return accumulated(memory, weights)

    def score(self, memory: Tensor) -> Tensor:
        """Return the sum as it stands."""
        return memory[:, 0]


@dataclass(frozen=True)
class SnapKV(AttentionPolicy):
    """Tokens that the newest ones attend to stay, with neighbours (arXiv 2404.14469).

    Args:
        sinks: first tokens, never evicted.
        evict_batch: slots that one compaction frees, or a share of the capacity.
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

    def protected(self, num_held: int) -> int:
        """Return the length of the window."""
        return self.window

    def remember(self, memory: Tensor | None, weights: Tensor) -> Tensor:
        """Return the attention of the newest tokens [H, window, N]."""
        return last_queries(memory, weights, self.window)

    def score(self, memory: Tensor) -> Tensor:
        """Return the score that `scores.snapkv` defines."""
        return snapkv(memory, kernel=self.kernel)


@final
@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """SnapKV with fewer tokens the deeper the layer (arXiv 2406.02069).

    The mean of the layers' capacities is the capacity. As a compaction frees equally many slots in
    every layer, no layer goes below sinks, window and one evict_batch.

    Args:
        sinks: first tokens, never evicted.
        evict_batch: slots that one compaction frees, or a share of the mean capacity.
        window: see SnapKV.
        kernel: see SnapKV.
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
