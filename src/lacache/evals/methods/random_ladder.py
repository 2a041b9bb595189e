"""Random ladders, as in the Pareto experiment of the paper (arXiv 2507.14204)."""

from dataclasses import dataclass
from typing import ClassVar, final

from lacache.common.validation import validate_int
from lacache.evals.baselines import RandomLadder
from lacache.evals.methods.ladder_counts import LadderCounts
from lacache.policies import Ladder, Policy


@final
@dataclass(frozen=True)
class RandomLadderMethod(LadderCounts):
    """Each layer keeps random units of every band. Other settings as in `LadderCounts`.

    Args:
        seed: of the choice of units; another seed is another pattern of the same bytes.
    """

    name: ClassVar[str] = "random-ladder"

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        validate_int("seed", self.seed, 0)

    def policy(self, ladder: Ladder) -> Policy:
        """Random thinning by a ladder's counts."""
        return RandomLadder(ladder, self.seed)
