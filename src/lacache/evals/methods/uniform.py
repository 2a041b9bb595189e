"""Uniform stride: thins as often and as much as the ladder, but every layer alike."""

from dataclasses import dataclass
from typing import ClassVar, final

from lacache.core import LadderConfig, Policy
from lacache.core.uniform import Uniform
from lacache.evals.methods.ladder_counts import LadderCounts


@final
@dataclass(frozen=True)
class UniformStride(LadderCounts):
    """Every layer keeps the same evenly thinned old tokens. Settings as in `LadderCounts`."""

    name: ClassVar[str] = "uniform"

    def policy(self, ladder: LadderConfig) -> Policy:
        """Uniform thinning by a ladder's counts."""
        return Uniform(ladder)
