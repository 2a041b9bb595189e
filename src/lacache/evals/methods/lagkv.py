"""LagKV (arXiv 2504.04704): what stands out from the tokens that follow stays."""

from dataclasses import dataclass
from typing import ClassVar, final

from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.evals.baselines import LagKV, Scorer
from lacache.evals.methods.scored import ScoredMethod


@final
@dataclass(frozen=True)
class LagKVMethod(ScoredMethod):
    """Evicts, in each partition but the last, what stands out least; needs no attention weights.

    Args:
        sinks: first tokens, never evicted.
        evict_batch: share of the capacity that one compaction frees.
        lag: tokens of a partition; less where the capacity holds fewer than four of them, so that
            most of the cache can be compared with what follows.
    """

    name: ClassVar[str] = "lagkv"

    lag: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        validate_int("lag", self.lag, 1)

    def scorer(self, capacity: int) -> Scorer:
        """With partitions that fit."""
        most = (capacity - self.sinks) // 4
        if most < 1:
            raise ConfigError(
                f"capacity={capacity} must be at least {self.sinks + 4} = sinks {self.sinks} + "
                f"four partitions; try capacity={self.sinks + 4}"
            )
        return LagKV(min(self.lag, most), sinks=self.sinks)
