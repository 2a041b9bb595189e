"""What the methods that evict by score share."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from lacache.cache import ReadingCache
from lacache.core.checks import check_int
from lacache.evals.baselines import ScoredCache, Scorer
from lacache.evals.methods.method import Method
from lacache.evals.methods.settings import REFILL, check_share, refill_slots, settings_record
from lacache.evals.records import Record


@dataclass(frozen=True)
class ScoredMethod(Method):
    """A method in which each KV head keeps the tokens of highest score, with slot positions.

    Args:
        sinks: first tokens, never evicted.
        refill: share of the capacity that one compaction frees.
    """

    sinks: int = 4
    refill: float = REFILL

    def __post_init__(self) -> None:
        check_int("sinks", self.sinks, 0)
        check_share("refill", self.refill)

    @abstractmethod
    def scorer(self, capacity: int) -> Scorer:
        """The score, at a capacity in tokens."""

    def open(self, model: Any, *, capacity: int, dense: bool) -> ReadingCache:
        """An empty cache."""
        return ScoredCache.from_model(
            model,
            self.scorer(capacity),
            capacity,
            refill=refill_slots(self.refill, capacity),
            sinks=self.sinks,
            dense=dense,
        )

    def record(self) -> Record:
        """Name and settings."""
        return settings_record(self.name, self)
