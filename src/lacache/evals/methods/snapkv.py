"""SnapKV (arXiv 2404.14469): what a window of newest tokens attends to stays."""

from dataclasses import dataclass
from typing import ClassVar, final

from lacache.evals.baselines import Scorer, SnapKV
from lacache.evals.methods.scored import ScoredMethod


@final
@dataclass(frozen=True)
class SnapKVMethod(ScoredMethod):
    """Evicts what the newest tokens attend to least, neighbours together.

    Args:
        sinks: first tokens, never evicted.
        evict_batch: share of the capacity that one compaction frees.
        window: newest tokens that look, and are never evicted; 8 as in the code of the PyramidKV
            paper's comparison, as a longer one sees more of the text than of a short question.
        kernel: slots to pool over, odd.
    """

    name: ClassVar[str] = "snapkv"

    window: int = 8
    kernel: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        SnapKV(self.window, self.kernel)

    def scorer(self, capacity: int) -> Scorer:
        """The same at any capacity."""
        return SnapKV(self.window, self.kernel)
