"""Uniform stride: thins as often and as much as the ladder, but every layer alike."""

from dataclasses import dataclass
from typing import ClassVar, final

from lacache.evals.methods.ladder_counts import LadderCounts
from lacache.policies import Ladder, Policy
from lacache.policies.uniform import Uniform


@final
@dataclass(frozen=True)
class UniformStride(LadderCounts):
    """Every layer keeps the same evenly thinned old tokens. Settings as in `LadderCounts`."""

    name: ClassVar[str] = "uniform"

    def policy(self, ladder: Ladder) -> Policy:
        """Uniform thinning by a ladder's counts."""
        return Uniform(ladder)
