"""Intervals by resampling (Efron 1979), with a fixed seed so that a figure can be made again."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lacache.errors import InputError

_RESAMPLES = 2000
BLOCK = 128
"""Tokens in a row whose losses may depend on each other."""


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


def _generator() -> Any:
    return torch.Generator().manual_seed(0)
