"""KeyDiff (arXiv 2504.15364): keys unlike the others stay."""

from dataclasses import dataclass
from typing import ClassVar, final

from lacache.evals.baselines import KeyDiff, Scorer
from lacache.evals.methods.scored import ScoredMethod


@final
@dataclass(frozen=True)
class KeyDiffMethod(ScoredMethod):
    """Evicts the keys most like the mean key; needs no attention weights."""

    name: ClassVar[str] = "keydiff"

    def scorer(self, capacity: int) -> Scorer:
        """The same at any capacity."""
        return KeyDiff()
