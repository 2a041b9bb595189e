"""Knorm (arXiv 2406.11430): keys of small norm stay."""

from dataclasses import dataclass
from typing import ClassVar, final

from lacache.evals.baselines import Knorm, Scorer
from lacache.evals.methods.scored import ScoredMethod


@final
@dataclass(frozen=True)
class KnormMethod(ScoredMethod):
    """Evicts the keys of largest norm; needs no attention weights."""

    name: ClassVar[str] = "knorm"

    def scorer(self, capacity: int) -> Scorer:
        """The same at any capacity."""
        return Knorm()
