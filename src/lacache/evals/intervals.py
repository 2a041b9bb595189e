"""Intervals by resampling (Efron 1979), with a fixed seed so that a figure can be made again.

Two runs on the same samples are paired: each resampling takes the same samples of both.
"""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple, final

import torch
from torch import Tensor

from lacache.errors import InputError

BLOCK = 128
"""Tokens in a row whose losses may depend on each other."""
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


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of the mean of independent values.

    It has no width where all values are equal, or where there is only one: read it together with
    the number of values.

    Raises:
        InputError: no values, or a level outside of 0 to 1.
    """
    data = _validated(values, level)
    drawn = torch.randint(len(data), (_RESAMPLES, len(data)), generator=_generator())
    return _percentiles(data[drawn].mean(dim=1), level)


def block_interval(
    values: Sequence[float], level: float = 0.95, block: int = BLOCK
) -> tuple[float, float]:
    """Return the percentile interval of the mean of a series with dependent neighbours.

    Moving blocks (Kuensch 1989) of `block` values in a row, or of half the series where that is
    shorter, are drawn until the length is reached.

    Raises:
        InputError: no values, or a level outside of 0 to 1.
    """
    data = _validated(values, level)
    block = max(1, min(block, len(data) // 2))
    # The sum of a block is a difference of running sums, so nothing of length x draws is held.
    running = torch.cat([torch.zeros(1, dtype=torch.float64), data.cumsum(0)])
    sums = running[block:] - running[:-block]
    blocks = len(data) // block
    drawn = torch.randint(len(sums), (_RESAMPLES, blocks), generator=_generator())
    return _percentiles(sums[drawn].sum(dim=1) / (blocks * block), level)


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


def mean_of_means(cells: Sequence[Sequence[float]]) -> Estimate:
    """Return the mean of the mean scores of cells; samples are drawn within each cell.

    Raises:
        InputError: there are no cells, or one is empty.
    """
    if not cells or not all(map(len, cells)):
        raise InputError(f"{len(cells)} cells, none empty, must be at least 1; give scores")
    generator = _generator()
    drawn = torch.zeros(_RESAMPLES, dtype=torch.float64)
    for scores in cells:
        data = torch.tensor(list(scores), dtype=torch.float64)
        chosen = torch.randint(len(data), (_RESAMPLES, len(data)), generator=generator)
        drawn += data[chosen].mean(dim=1)
    value = fmean(map(fmean, cells))
    if all(len(scores) == 1 for scores in cells):
        return Estimate(value, *UNKNOWN)
    return Estimate(value, *_percentiles(drawn / len(cells), 0.95))


def ratio_of_means(cells: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Estimate | None:
    """Return our mean of mean scores of cells over theirs, or None where theirs is 0.

    Args:
        cells: our scores and theirs for each cell, paired. Samples are drawn within each cell.

    Raises:
        InputError: there are no cells, one is empty, or its numbers of scores differ.
    """
    if not cells:
        raise InputError("0 cells leave nothing to compare; give at least one")
    generator = _generator()
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


def _validated(values: Sequence[float], level: float) -> Tensor:
    if not len(values):
        raise InputError("0 values have no interval; give at least one")
    if not 0 < level < 1:
        raise InputError(f"level={level} must be above 0 and below 1; try 0.95")
    return torch.tensor(values, dtype=torch.float64)


def _percentiles(means: Tensor, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _gaps(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    if not ours or len(ours) != len(theirs):
        raise InputError(
            f"{len(ours)} and {len(theirs)} samples cannot be paired; give runs of the same samples"
        )
    return [a - b for a, b in zip(ours, theirs, strict=True)]
