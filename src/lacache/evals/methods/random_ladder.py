"""Random ladders, as in the Pareto experiment of the paper (arXiv 2507.14204)."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from lacache.cache import LaCache, ReadingCache
from lacache.cache.facts import model_facts
from lacache.core.checks import check_int
from lacache.evals.baselines import RandomLadder
from lacache.evals.methods.ladder import Ladder
from lacache.evals.methods.method import Method
from lacache.evals.methods.settings import REFILL, settings_record
from lacache.evals.records import Record


@final
@dataclass(frozen=True)
class RandomLadderMethod(Method):
    """Each layer keeps random units of every band, as many and as often as the ladder.

    Args:
        seed: of the choice of units; another seed is another pattern of the same bytes.
        span: as in the ladder, whose counts are followed.
        overlap: as in the ladder.
        sinks: first tokens, never evicted.
        recent: share of the capacity that no compaction touches.
        refill: share of the capacity that one compaction frees.
        unit: neighbouring tokens that are kept or dropped together.
    """

    name: ClassVar[str] = "random-ladder"

    seed: int = 0
    span: int | None = None
    overlap: int | None = None
    sinks: int = 4
    recent: float | None = None
    refill: float = REFILL
    unit: int = 1

    def __post_init__(self) -> None:
        check_int("seed", self.seed, 0)
        self._ladder()

    def open(self, model: Any, *, capacity: int, dense: bool) -> ReadingCache:
        """An empty cache."""
        ladder = self._ladder().policy(capacity, len(model_facts(model).growing))
        policy = RandomLadder(ladder, self.seed)
        return LaCache.from_model(model, policy, prefill="dense" if dense else "segmented")

    def record(self) -> Record:
        """Name and settings."""
        return settings_record(self.name, self)

    def _ladder(self) -> Ladder:
        return Ladder(
            span=self.span,
            overlap=self.overlap,
            sinks=self.sinks,
            recent=self.recent,
            refill=self.refill,
            unit=self.unit,
        )
