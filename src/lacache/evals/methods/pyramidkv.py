"""PyramidKV (arXiv 2406.02069): SnapKV with fewer tokens the deeper the layer."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from lacache.cache import HookedCache
from lacache.errors import ConfigError
from lacache.evals.baselines import ScoredCache, Scorer, SnapKV, pyramid
from lacache.evals.methods.scored import ScoredMethod
from lacache.evals.methods.settings import evict_batch_slots
from lacache.models.model_info import model_info


@final
@dataclass(frozen=True)
class PyramidKVMethod(ScoredMethod):
    """Evicts by SnapKV's score; capacities fall with depth and their mean is the capacity.

    As a compaction frees equally many slots in every layer, no layer goes below sinks, window and
    one evict_batch.

    Args:
        sinks: first tokens, never evicted.
        evict_batch: share of the mean capacity that one compaction frees.
        window: newest tokens that look, and are never evicted; 8 as in the code of the PyramidKV
            paper's comparison, as a longer one sees more of the text than of a short question.
        kernel: slots to pool over, odd.
        beta: how steeply capacities fall, at least 1; 20 as in the paper's code.
    """

    name: ClassVar[str] = "pyramidkv"

    window: int = 8
    kernel: int = 5
    beta: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        SnapKV(self.window, self.kernel)
        if not self.beta >= 1:
            raise ConfigError(f"beta={self.beta} must be at least 1; try beta=20")

    def scorer(self, capacity: int) -> Scorer:
        """SnapKV's."""
        return SnapKV(self.window, self.kernel)

    def open(self, model: Any, *, capacity: int, dense: bool) -> HookedCache:
        """An empty cache."""
        evict_batch = evict_batch_slots(self.evict_batch, capacity)
        capacities = pyramid(
            capacity,
            len(model_info(model).growing),
            window=self.window,
            beta=self.beta,
            floor=self.sinks + self.window + evict_batch,
        )
        return ScoredCache.from_model(
            model,
            self.scorer(capacity),
            capacities,
            evict_batch=evict_batch,
            sinks=self.sinks,
            dense=dense,
        )
