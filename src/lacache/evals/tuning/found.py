"""The settings and the result of a search."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.evals.tuning.objectives import Excerpt
from lacache.policies import Full, Policy, Streaming

FULL: Policy = Full()
STREAMING: Policy = Streaming()

TOLERANCE = 1.003
"""How much higher than StreamingLLM's a perplexity may be and still count as no worse."""


def validate_minutes(minutes: float) -> None:
    """Raise ConfigError unless `minutes` is positive and finite."""
    if not 0 < minutes < math.inf:
        raise ConfigError(f"minutes={minutes} must be above 0 and finite; try --minutes 10")


@final
@dataclass(frozen=True)
class Settings:
    """The settings of a search, besides the model and the text.

    Args:
        capacity: tokens per layer, the same for all candidates.
        length: tokens of an excerpt, above the capacity.
        minutes: of measuring, all starts of the same search together.

    Raises:
        ConfigError: a value out of range, or a cache that an excerpt does not fill.
    """

    capacity: int
    length: int
    minutes: float

    def __post_init__(self) -> None:
        validate_int("capacity", self.capacity, 1)
        validate_int("length", self.length, 2)
        validate_minutes(self.minutes)
        if self.length <= self.capacity:
            raise ConfigError(
                f"length={self.length} must be above the capacity {self.capacity}, else nothing "
                f"is ever evicted; try --length {4 * self.capacity}"
            )


@final
@dataclass(frozen=True)
class Recommended:
    """One policy for each goal, chosen on the part of the text for comparing."""

    text: Policy
    """Least perplexity."""
    recall: Policy
    """Least loss of the answers."""
    both: Policy
    """Least loss of the answers among those whose perplexity is not clearly above TOLERANCE times
    StreamingLLM's: the whole interval of the ratio is not."""


@final
@dataclass(frozen=True)
class Found:
    """The result of a search."""

    compared: Mapping[Policy, Sequence[Excerpt]]
    """What was measured for comparing; StreamingLLM is among the policies, the full cache not."""
    finalists: tuple[Policy, ...]
    """Those that were compared on all of it, the best first."""
    front: tuple[Policy, ...]
    """The Pareto front among them, by perplexity."""
    recommended: Recommended
    held_out: Mapping[Policy, Sequence[Excerpt]]
    """Winners, StreamingLLM and the full cache on the held-out part."""
    failed: Mapping[Policy, str]
    untried: tuple[Policy, ...]
    """Those for which the time did not suffice."""
    seconds: float
    """Time of all runs."""


def recommend(
    points: Mapping[Policy, tuple[float, float]], ratios: Mapping[Policy, float]
) -> Recommended:
    """Choose the best policy for each goal; of equal ones the one that is better otherwise.

    Args:
        points: perplexity and loss of each policy of the front.
        ratios: by policy, the low end of the interval of its perplexity over StreamingLLM's.
    """
    good = [policy for policy in points if ratios[policy] <= TOLERANCE]
    return Recommended(
        text=min(points, key=lambda p: points[p]),
        recall=min(points, key=lambda p: points[p][::-1]),
        both=min(good, key=lambda p: points[p][::-1]),
    )
