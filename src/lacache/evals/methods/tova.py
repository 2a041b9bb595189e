"""TOVA (arXiv 2401.06104): what the newest token attends to stays."""

from dataclasses import dataclass
from typing import ClassVar, final

from lacache.evals.baselines import TOVA, Scorer
from lacache.evals.methods.scored import ScoredMethod


@final
@dataclass(frozen=True)
class TOVAMethod(ScoredMethod):
    """Evicts what the newest token attends to least, the same in every head of a layer."""

    name: ClassVar[str] = "tova"

    def scorer(self, capacity: int) -> Scorer:
        """The same at any capacity."""
        return TOVA()
