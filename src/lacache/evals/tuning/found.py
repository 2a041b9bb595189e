"""What a search has found, and what it recommends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from lacache.evals.methods.method import Method
from lacache.evals.tuning.objectives import Stretch

TOLERANCE = 1.003
"""How much higher than StreamingLLM's a perplexity may be and still count as no worse."""


@final
@dataclass(frozen=True)
class Recommended:
    """One method for each wish, chosen on the part of the text for comparing."""

    text: Method
    """Least perplexity."""
    recall: Method
    """Least loss of the answers."""
    both: Method
    """Least loss of the answers of those whose perplexity is not clearly above TOLERANCE times
    StreamingLLM's: the whole interval of the ratio is not."""


@final
@dataclass(frozen=True)
class Found:
    """What a search has found."""

    compared: Mapping[Method, Sequence[Stretch]]
    """What was read for comparing; StreamingLLM is among the methods, the full cache is not."""
    finalists: tuple[Method, ...]
    """Those that were compared on all of it, the best first."""
    front: tuple[Method, ...]
    """Those of them that no other beats, by perplexity."""
    recommended: Recommended
    held_out: Mapping[Method, Sequence[Stretch]]
    """What winners, StreamingLLM and the full cache made of the held-out part."""
    failed: Mapping[Method, str]
    untried: tuple[Method, ...]
    """Those for which the time did not suffice."""
    seconds: float
    """Time of all runs."""


def recommend(
    points: Mapping[Method, tuple[float, float]], ratios: Mapping[Method, float]
) -> Recommended:
    """For each wish the method of least figure, and of equal ones that which is better otherwise.

    Args:
        points: perplexity and loss of each method of the front.
        ratios: by method, the low end of the interval of its perplexity over StreamingLLM's.
    """
    good = [method for method in points if ratios[method] <= TOLERANCE]
    return Recommended(
        text=min(points, key=lambda m: points[m]),
        recall=min(points, key=lambda m: points[m][::-1]),
        both=min(good, key=lambda m: points[m][::-1]),
    )
