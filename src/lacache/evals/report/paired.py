"""Differences and ratios of runs on the same samples, with 95 % bootstrap intervals.

Two runs share their samples, so each resampling takes the same samples of both.
"""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple, final

import torch

from lacache.errors import InputError
from lacache.evals.bootstrap import BLOCK, block_interval, mean_interval

UNKNOWN = (-math.inf, math.inf)
"""The interval of a single sample."""

_RESAMPLES = 2000


@final
class Estimate(NamedTuple):
    """A number with its 95 % bootstrap interval.

    An end may be infinite; both are for a single sample, which shows nothing of its variance.
    """

    value: float
    low: float
    high: float


def mean_difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Return the mean of `ours - theirs`, paired.

    Raises:
        InputError: there is nothing to pair, or the numbers of samples differ.
    """
    gaps = _gaps(ours, theirs)
    return Estimate(fmean(gaps), *(mean_interval(gaps) if len(gaps) > 1 else UNKNOWN))


def perplexity_ratio(
    ours: Sequence[float], theirs: Sequence[float], block: int = BLOCK
) -> Estimate:
    """Return the perplexity of `ours` over that of `theirs`, from losses in nats.

    Args:
        ours: losses.
        theirs: losses of the same tokens.
        block: number of tokens in a row that may depend on each other.

    Raises:
        InputError: there is nothing to pair, or the numbers of tokens differ.
    """
    gaps = _gaps(ours, theirs)
    low, high = block_interval(gaps, block=block)
    return Estimate(math.exp(fmean(gaps)), math.exp(low), math.exp(high))


def ratio_of_means(cells: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Estimate | None:
    """Return our mean of mean scores of cells over theirs, or None where theirs is 0.

    Args:
        cells: our scores and theirs for each cell, paired. Samples are drawn within each cell.

    Raises:
        InputError: there are no cells, one is empty, or its numbers of scores differ.
    """
    if not cells:
        raise InputError("0 cells leave nothing to compare; give at least one")
    generator = torch.Generator().manual_seed(0)
    values = torch.zeros(2, dtype=torch.float64)
    drawn = torch.zeros(2, _RESAMPLES, dtype=torch.float64)
    for ours, theirs in cells:
        _gaps(ours, theirs)
        both = torch.tensor([list(ours), list(theirs)], dtype=torch.float64)
        chosen = torch.randint(len(ours), (_RESAMPLES, len(ours)), generator=generator)
        values += both.mean(dim=1)
        drawn += both[:, chosen].mean(dim=2)
    if values[1] == 0:
        return None
    # A resampling in which both scores are 0 counts as no difference.
    ratios = torch.where(drawn.sum(dim=0) == 0, 1.0, drawn[0] / drawn[1]).sort().values
    value = float(values[0] / values[1])
    if all(len(ours) == 1 for ours, _ in cells):
        return Estimate(value, *UNKNOWN)
    # Order statistics, as interpolation between a number and infinity is not a number.
    tail = round(0.025 * (_RESAMPLES - 1))
    return Estimate(value, float(ratios[tail]), float(ratios[-1 - tail]))


def _gaps(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    if not ours or len(ours) != len(theirs):
        raise InputError(
            f"{len(ours)} and {len(theirs)} samples cannot be paired; give runs of the same samples"
        )
    return [a - b for a, b in zip(ours, theirs, strict=True)]
