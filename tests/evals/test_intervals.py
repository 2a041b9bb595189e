import random
from statistics import fmean

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lacache.errors import InputError
from lacache.evals import intervals
from lacache.evals.intervals import block_interval, mean_interval

VALUES = st.lists(st.floats(-5, 5), min_size=1, max_size=30)


def slow_percentiles(means: list[float], level: float) -> tuple[float, float]:
    means.sort()

    def at(share: float) -> float:
        place = share * (len(means) - 1)
        low = int(place)
        high = min(low + 1, len(means) - 1)
        return means[low] + (place - low) * (means[high] - means[low])

    return at((1 - level) / 2), at((1 + level) / 2)


def draws(count: int, size: int) -> list[list[int]]:
    shape = (intervals._RESAMPLES, size)
    found: list[list[int]] = torch.randint(
        count, shape, generator=torch.Generator().manual_seed(0)
    ).tolist()
    return found


@settings(max_examples=25)
@given(values=VALUES, level=st.sampled_from([0.5, 0.95]))
def test_an_interval_is_that_of_resampled_means(values: list[float], level: float) -> None:
    means = [fmean(values[i] for i in drawn) for drawn in draws(len(values), len(values))]
    assert mean_interval(values, level) == pytest.approx(slow_percentiles(means, level))


@settings(max_examples=25)
@given(values=VALUES, block=st.integers(1, 8))
def test_blocks_are_resampled_whole(values: list[float], block: int) -> None:
    size = max(1, min(block, len(values) // 2))
    starts = len(values) - size + 1
    means = [
        fmean(values[start + i] for start in drawn for i in range(size))
        for drawn in draws(starts, len(values) // size)
    ]
    expected = slow_percentiles(means, 0.95)
    assert block_interval(values, block=block) == pytest.approx(expected, abs=1e-9)


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = random.Random(0)
    covered = 0
    for _ in range(100):
        low, high = mean_interval([rng.gauss(3.0, 2.0) for _ in range(40)])
        covered += low <= 3.0 <= high
    assert 85 <= covered <= 100


def test_neighbours_that_depend_on_each_other_widen_the_interval() -> None:
    rng = random.Random(0)
    steps = [rng.gauss(0, 1) for _ in range(32)]
    values = [step for step in steps for _ in range(64)]
    low, high = mean_interval(values)
    wide_low, wide_high = block_interval(values, block=128)
    assert wide_high - wide_low > 3 * (high - low)


def test_equal_values_leave_no_doubt() -> None:
    assert mean_interval([0.5]) == (0.5, 0.5)
    assert mean_interval([1.0] * 9) == (1.0, 1.0)
    assert block_interval([2.0]) == (2.0, 2.0)


@pytest.mark.parametrize("interval", [mean_interval, block_interval])
def test_bad_input_is_refused(interval: object) -> None:
    with pytest.raises(InputError, match="0 values have no interval"):
        interval([])  # type: ignore[operator]
    with pytest.raises(InputError, match="level=1 must be above 0 and below 1"):
        interval([1.0], 1)  # type: ignore[operator]
