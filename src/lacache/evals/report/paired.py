"""Differences and ratios of runs on the same samples, with 95 % bootstrap intervals.

The samples of two runs are the same ones, so each draw takes the same samples of both.
"""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple, final

import torch

from lacache.errors import InputError
from lacache.evals.bootstrap import BLOCK, block_interval, mean_interval

UNKNOWN = (-math.inf, math.inf)
"""An interval that nothing is known of."""

_RESAMPLES = 2000


@final
class Estimate(NamedTuple):
    """A number with the 95 % interval of its bootstrap; an end may be infinite.

    Both are where there is only one sample, which says nothing of how much chance is in it.
    """

    value: float
    low: float
    high: float


def mean_difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """The mean of `ours - theirs`, paired.

    Raises:
        InputError: nothing to pair, or unequally many.
    """
    gaps = _gaps(ours, theirs)
    return Estimate(fmean(gaps), *(mean_interval(gaps) if len(gaps) > 1 else UNKNOWN))


def perplexity_ratio(
    ours: Sequence[float], theirs: Sequence[float], block: int = BLOCK
) -> Estimate:
    """The perplexity of `ours` over that of `theirs`, from losses in nats of the same tokens.

    Args:
        ours: losses.
        theirs: losses of the same tokens.
        block: how many in a row may depend on each other.

    Raises:
        InputError: nothing to pair, or unequally many.
    """
    gaps = _gaps(ours, theirs)
    low, high = block_interval(gaps, block=block)
    return Estimate(math.exp(fmean(gaps)), math.exp(low), math.exp(high))


def ratio_of_means(cells: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Estimate | None:
    """The mean over cells of our mean score, over that of theirs; None where theirs is 0.

    Args:
        cells: for each cell our scores and theirs, paired. Samples are drawn within each cell.

    Raises:
        InputError: no cells, an empty one, or unequally many scores.
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
    # A draw in which both have nothing says nothing, so it counts as no difference.
    ratios = torch.where(drawn.sum(dim=0) == 0, 1.0, drawn[0] / drawn[1]).sort().values
    value = float(values[0] / values[1])
    if all(len(ours) == 1 for ours, _ in cells):
        return Estimate(value, *UNKNOWN)
    # Order statistics, as one between a number and infinity would not be a number.
    tail = round(0.025 * (_RESAMPLES - 1))
    return Estimate(value, float(ratios[tail]), float(ratios[-1 - tail]))


def _gaps(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    if not ours or len(ours) != len(theirs):
        raise InputError(
            f"{len(ours)} and {len(theirs)} samples cannot be paired; give runs of the same samples"
        )
    return [a - b for a, b in zip(ours, theirs, strict=True)]
