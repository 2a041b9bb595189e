"""The two objectives, perplexity and the loss of answers, and what is best in both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import final

from lacache.common.records import Record
from lacache.evals.intervals import block_interval, mean_interval, perplexity_ratio
from lacache.evals.perplexity import perplexity

Interval = tuple[float, float]
Point = tuple[float, float]
"""Two figures, both better when they are lower."""


@final
@dataclass(frozen=True)
class Excerpt:
    """One policy on one excerpt: the records of the text and of its needles."""

    text: Record
    needles: Record

    @property
    def seconds(self) -> float:
        """Time that both took."""
        return float(self.text["seconds"] + self.needles["seconds"])


@final
@dataclass(frozen=True)
class Figures:
    """A policy over several excerpts, with 95 % intervals.

    Intervals of needles are over excerpts, and too narrow where these are few.
    """

    excerpts: int
    needles: int
    perplexity: float
    perplexity_interval: Interval
    loss: float
    """Nats of a right answer."""
    loss_interval: Interval
    score: float
    """Share of the needles that were found."""
    score_interval: Interval
    mean_bytes: float
    peak_bytes: float

    @property
    def point(self) -> Point:
        """Return perplexity and loss, the two objectives."""
        return self.perplexity, self.loss


@final
@dataclass(frozen=True)
class Against:
    """A policy against another on the same tokens and needles."""

    excerpts: int
    ratio: float
    """Of the perplexities; below 1 is better."""
    ratio_interval: Interval
    loss: float
    """Difference of the answers' losses in nats; below 0 is better."""
    loss_interval: Interval


def figures(excerpts: Sequence[Excerpt]) -> Figures:
    """Return the figures over all tokens and all needles of at least one excerpt."""
    nll, losses = _tokens(excerpts), _needles(excerpts, "nlls")
    scores = _needles(excerpts, "scores")
    low, high = block_interval(nll)
    records = [record for e in excerpts for record in (e.text, e.needles)]
    return Figures(
        excerpts=len(excerpts),
        needles=sum(map(len, losses)),
        perplexity=perplexity(nll),
        perplexity_interval=(math.exp(low), math.exp(high)),
        loss=_mean(losses),
        loss_interval=_interval(losses),
        score=_mean(scores),
        score_interval=_interval(scores),
        mean_bytes=fmean(float(record["mean_bytes"]) for record in records),
        peak_bytes=max(float(record["peak_bytes"]) for record in records),
    )


def against(excerpts: Sequence[Excerpt], others: Sequence[Excerpt]) -> Against:
    """Compare token with token and needle with needle, so that what both share cancels out.

    Args:
        excerpts: of the policy.
        others: of what it is compared with; the same excerpts in the same order.
    """
    losses = [
        [a - b for a, b in zip(mine, theirs, strict=True)]
        for mine, theirs in zip(_needles(excerpts, "nlls"), _needles(others, "nlls"), strict=True)
    ]
    ratio, low, high = perplexity_ratio(_tokens(excerpts), _tokens(others))
    return Against(
        excerpts=len(excerpts),
        ratio=ratio,
        ratio_interval=(low, high),
        loss=_mean(losses),
        loss_interval=_interval(losses),
    )


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Return which points no other beats (as good in both, better in one), by the first objective.

    Equal points do not beat each other.
    """
    found: list[int] = []
    least = math.inf
    for index in sorted(range(len(points)), key=points.__getitem__):
        if points[index][1] < least or (found and points[index] == points[found[-1]]):
            found.append(index)
            least = points[index][1]
    return found


def ranked(points: Sequence[Point]) -> list[int]:
    """Return all points, the best first.

    Those of the front come first, then the front of what is left, and so on; within one, by the
    sum of both ranks, which prefers what is good in both.
    """

    def rank_sum(index: int) -> int:
        return sum(other[i] < points[index][i] for other in points for i in (0, 1))

    order: list[int] = []
    left = list(range(len(points)))
    while left:
        layer = {left[i] for i in pareto_front([points[i] for i in left])}
        order += sorted(layer, key=lambda i: (rank_sum(i), i))
        left = [i for i in left if i not in layer]
    return order


def _tokens(excerpts: Sequence[Excerpt]) -> list[float]:
    """Return the losses of all tokens, excerpt after excerpt."""
    return [float(value) for e in excerpts for value in e.text["nll"]]


def _needles(excerpts: Sequence[Excerpt], name: str) -> list[list[float]]:
    """Return a figure of all needles, by excerpt."""
    return [
        [float(value) for sample in excerpt.needles["samples"] for value in sample[name]]
        for excerpt in excerpts
    ]


def _mean(values: Sequence[Sequence[float]]) -> float:
    return fmean(value for of_excerpt in values for value in of_excerpt)


def _interval(values: Sequence[Sequence[float]]) -> Interval:
    """Return the interval of the mean over whole excerpts, as needles in one share its cache.

    All excerpts have equally many needles, so the mean of their means is the mean.
    """
    return mean_interval([fmean(of_excerpt) for of_excerpt in values])
