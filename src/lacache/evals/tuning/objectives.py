"""The two objectives, from the records of a method's runs: perplexity and the loss of answers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import final

from lacache.common.records import Record
from lacache.evals.bootstrap import block_interval, mean_interval
from lacache.evals.perplexity import perplexity
from lacache.evals.tuning.pareto import Point

Interval = tuple[float, float]


@final
@dataclass(frozen=True)
class Stretch:
    """What one method made of one stretch: the records of the text and of its needles."""

    text: Record
    needles: Record

    @property
    def seconds(self) -> float:
        """Time that both took."""
        return float(self.text["seconds"] + self.needles["seconds"])


@final
@dataclass(frozen=True)
class Figures:
    """A method over several stretches; intervals are 95 %.

    Those of needles are over stretches, and too narrow where these are few.
    """

    stretches: int
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
        """Both objectives."""
        return self.perplexity, self.loss


@final
@dataclass(frozen=True)
class Against:
    """A method against another on the same tokens and needles."""

    stretches: int
    ratio: float
    """Of the perplexities; below 1 is better."""
    ratio_interval: Interval
    loss: float
    """Difference of the answers' losses in nats; below 0 is better."""
    loss_interval: Interval


def figures(stretches: Sequence[Stretch]) -> Figures:
    """All tokens and all needles together.

    Args:
        stretches: at least one.
    """
    nll, losses = _tokens(stretches), _needles(stretches, "nlls")
    scores = _needles(stretches, "scores")
    low, high = block_interval(nll)
    records = [record for s in stretches for record in (s.text, s.needles)]
    return Figures(
        stretches=len(stretches),
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


def against(stretches: Sequence[Stretch], others: Sequence[Stretch]) -> Against:
    """Pairs token with token and needle with needle, so that what both share falls out.

    Args:
        stretches: of the method.
        others: of what it is compared with; the same stretches in the same order.
    """
    nll = [a - b for a, b in zip(_tokens(stretches), _tokens(others), strict=True)]
    losses = [
        [a - b for a, b in zip(mine, theirs, strict=True)]
        for mine, theirs in zip(_needles(stretches, "nlls"), _needles(others, "nlls"), strict=True)
    ]
    low, high = block_interval(nll)
    return Against(
        stretches=len(stretches),
        ratio=math.exp(fmean(nll)),
        ratio_interval=(math.exp(low), math.exp(high)),
        loss=_mean(losses),
        loss_interval=_interval(losses),
    )


def _tokens(stretches: Sequence[Stretch]) -> list[float]:
    """Losses of all tokens, stretch after stretch."""
    return [float(value) for s in stretches for value in s.text["nll"]]


def _needles(stretches: Sequence[Stretch], name: str) -> list[list[float]]:
    """A figure of all needles, by stretch."""
    return [
        [float(value) for sample in stretch.needles["samples"] for value in sample[name]]
        for stretch in stretches
    ]


def _mean(values: Sequence[Sequence[float]]) -> float:
    return fmean(value for of_stretch in values for value in of_stretch)


def _interval(values: Sequence[Sequence[float]]) -> Interval:
    """Of the mean: whole stretches are drawn, as needles in one text share its cache.

    All stretches have equally many needles, so that the mean of their means is the mean.
    """
    return mean_interval([fmean(of_stretch) for of_stretch in values])
