"""H2O (arXiv 2306.14048): what got most attention so far stays, and the newest tokens."""

from dataclasses import dataclass
from typing import ClassVar, final

from lacache.errors import ConfigError
from lacache.evals.baselines import H2O, Scorer
from lacache.evals.methods.scored import ScoredMethod
from lacache.evals.methods.settings import validate_share


@final
@dataclass(frozen=True)
class H2OMethod(ScoredMethod):
    """Evicts what got least attention since it came in.

    Args:
        sinks: first tokens, never evicted.
        evict_batch: share of the capacity that one compaction frees.
        recent: share of the capacity for the newest tokens; half, as in the paper.
    """

    name: ClassVar[str] = "h2o"

    recent: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        validate_share("recent", self.recent)
        if self.recent + self.evict_batch >= 1:
            raise ConfigError(
                f"recent={self.recent} and evict_batch={self.evict_batch} must be below 1 "
                "together, as they are shares of one capacity; try recent=0.5"
            )

    def scorer(self, capacity: int) -> Scorer:
        """With the window in tokens."""
        return H2O(int(self.recent * capacity))
