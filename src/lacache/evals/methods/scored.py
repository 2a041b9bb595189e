"""What the methods that evict by score share."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from lacache.cache import HookedCache
from lacache.common.records import Record
from lacache.common.validation import validate_int
from lacache.evals.baselines import ScoredCache, Scorer
from lacache.evals.methods.method import Method
from lacache.evals.methods.settings import (
    EVICT_BATCH,
    evict_batch_slots,
    settings_record,
    validate_share,
)


@dataclass(frozen=True)
class ScoredMethod(Method):
    """A method in which each KV head keeps the tokens of highest score, with slot positions.

    Args:
        sinks: first tokens, never evicted.
        evict_batch: share of the capacity that one compaction frees.
    """

    sinks: int = 4
    evict_batch: float = EVICT_BATCH

    def __post_init__(self) -> None:
        validate_int("sinks", self.sinks, 0)
        validate_share("evict_batch", self.evict_batch)

    @abstractmethod
    def scorer(self, capacity: int) -> Scorer:
        """The score, at a capacity in tokens."""

    def open(self, model: Any, *, capacity: int, dense: bool) -> HookedCache:
        """An empty cache."""
        return ScoredCache.from_model(
            model,
            self.scorer(capacity),
            capacity,
            evict_batch=evict_batch_slots(self.evict_batch, capacity),
            sinks=self.sinks,
            dense=dense,
        )

    def record(self) -> Record:
        """Name and settings."""
        return settings_record(self.name, self)
