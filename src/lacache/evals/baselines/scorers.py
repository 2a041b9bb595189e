"""The scores of the literature, with the settings that a cache evicts by."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.evals.baselines.scorer import AttentionScorer, KeyScorer
from lacache.evals.baselines.scores import (
    accumulated,
    keydiff,
    knorm,
    lagkv,
    last_rows,
    snapkv,
    tova,
)


@final
@dataclass(frozen=True)
class Knorm(KeyScorer):
    """Keys of small norm stay (arXiv 2406.11430). No newest tokens are protected."""

    def protected(self, num_held: int) -> int:
        """None."""
        return 0

    def score(self, keys: Tensor, values: Tensor) -> Tensor:
        """See `scores.knorm`."""
        return knorm(keys)


@final
@dataclass(frozen=True)
class KeyDiff(KeyScorer):
    """Keys unlike the others stay (arXiv 2504.15364). No newest tokens are protected."""

    def protected(self, num_held: int) -> int:
        """None."""
        return 0

    def score(self, keys: Tensor, values: Tensor) -> Tensor:
        """See `scores.keydiff`."""
        return keydiff(keys)


@final
@dataclass(frozen=True)
class LagKV(KeyScorer):
    """Tokens that stand out from those that follow stay (arXiv 2504.04704).

    Args:
        lag: tokens of a partition.
        sinks: first tokens, not in any partition.

    Raises:
        ConfigError: a value out of range.
    """

    lag: int
    sinks: int = 4

    def __post_init__(self) -> None:
        validate_int("lag", self.lag, 1)
        validate_int("sinks", self.sinks, 0)

    def protected(self, num_held: int) -> int:
        """The last whole partition and what comes after it."""
        return min(num_held, self.lag + (num_held - self.sinks) % self.lag)

    def score(self, keys: Tensor, values: Tensor) -> Tensor:
        """See `scores.lagkv`."""
        return lagkv(keys, values, sinks=self.sinks, lag=self.lag)


@final
@dataclass(frozen=True)
class TOVA(AttentionScorer):
    """What the newest token attends to stays (arXiv 2401.06104), and that token itself."""

    @property
    def looks(self) -> int:
        """The newest alone."""
        return 1

    def protected(self, num_held: int) -> int:
        """The newest token."""
        return 1

    def remember(self, memory: Tensor | None, weights: Tensor) -> Tensor:
        """The newest token's attention [H, 1, N]."""
        return last_rows(memory, weights, 1)

    def score(self, memory: Tensor) -> Tensor:
        """See `scores.tova`."""
        return tova(memory)


@final
@dataclass(frozen=True)
class H2O(AttentionScorer):
    """What got most attention so far stays (arXiv 2306.14048), and the newest tokens.

    Args:
        recent: newest tokens, never evicted.

    Raises:
        ConfigError: a value out of range.
    """

    recent: int

    def __post_init__(self) -> None:
        validate_int("recent", self.recent, 0)

    @property
    def looks(self) -> None:
        """All that ever came."""

    def protected(self, num_held: int) -> int:
        """The window."""
        return self.recent

    def remember(self, memory: Tensor | None, weights: Tensor) -> Tensor:
        """The attention that each token got so far [H, 1, N]."""
        return accumulated(memory, weights)

    def score(self, memory: Tensor) -> Tensor:
        """The sum as it stands."""
        return memory[:, 0]


@final
@dataclass(frozen=True)
class SnapKV(AttentionScorer):
    """What the newest tokens attend to stays, neighbours together (arXiv 2404.14469).

    Args:
        window: newest tokens that look, and are never evicted.
        kernel: slots to pool over, odd.

    Raises:
        ConfigError: a value out of range.
    """

    window: int = 8
    kernel: int = 5

    def __post_init__(self) -> None:
        validate_int("window", self.window, 1)
        validate_int("kernel", self.kernel, 1)
        if self.kernel % 2 == 0:
            raise ConfigError(
                f"kernel={self.kernel} must be odd, to have a middle; try kernel={self.kernel + 1}"
            )

    @property
    def looks(self) -> int:
        """The window."""
        return self.window

    def protected(self, num_held: int) -> int:
        """The window."""
        return self.window

    def remember(self, memory: Tensor | None, weights: Tensor) -> Tensor:
        """The attention of the newest tokens [H, window, N]."""
        return last_rows(memory, weights, self.window)

    def score(self, memory: Tensor) -> Tensor:
        """See `scores.snapkv`."""
        return snapkv(memory, kernel=self.kernel)
