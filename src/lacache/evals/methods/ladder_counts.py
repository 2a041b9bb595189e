"""What methods share that follow a ladder's counts and keep other tokens."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from lacache.cache import HookedCache, LaCache
from lacache.common.records import Record
from lacache.evals.methods.ladder import LadderMethod
from lacache.evals.methods.method import Method
from lacache.evals.methods.settings import EVICT_BATCH, settings_record
from lacache.models.model_info import model_info
from lacache.policies import Ladder, Policy


@dataclass(frozen=True)
class LadderCounts(Method):
    """Thins as often and as much as a ladder, so that it always holds as many bytes.

    Args:
        span: as in the ladder, whose counts are followed.
        overlap: as in the ladder.
        sinks: first tokens, never evicted.
        recent: share of the capacity that no compaction touches.
        evict_batch: share of the capacity that one compaction frees.
        unit: neighbouring tokens that are kept or dropped together.
    """

    span: int | None = None
    overlap: int | None = None
    sinks: int = 4
    recent: float | None = None
    evict_batch: float = EVICT_BATCH
    unit: int = 1

    def __post_init__(self) -> None:
        self._ladder()

    @abstractmethod
    def policy(self, ladder: Ladder) -> Policy:
        """What keeps as many tokens as a ladder."""

    def open(self, model: Any, *, capacity: int, dense: bool) -> HookedCache:
        """An empty cache."""
        ladder = self._ladder().policy(capacity, len(model_info(model).growing))
        policy = self.policy(ladder)
        return LaCache.from_model(model, policy, prefill="dense" if dense else "chunked")

    def record(self) -> Record:
        """Name and settings."""
        return settings_record(self.name, self)

    def _ladder(self) -> LadderMethod:
        return LadderMethod(
            span=self.span,
            overlap=self.overlap,
            sinks=self.sinks,
            recent=self.recent,
            evict_batch=self.evict_batch,
            unit=self.unit,
        )
