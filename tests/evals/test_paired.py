import math
from itertools import product
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lacache.errors import InputError
from lacache.evals.intervals import UNKNOWN, mean_difference, perplexity_ratio, ratio_of_means
from lacache.evals.perplexity import perplexity

SCORES = st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 1)), min_size=2, max_size=8)


@given(SCORES)
def test_differences_are_those_of_the_means(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    estimate = mean_difference(ours, theirs)
    assert estimate.value == pytest.approx(fmean(ours) - fmean(theirs))
    gaps = [a - b for a, b in pairs]
    assert min(gaps) - 1e-9 <= estimate.low <= estimate.high <= max(gaps) + 1e-9


@given(SCORES, SCORES)
def test_ratios_are_those_of_the_means_over_cells(
    first: list[tuple[float, float]], second: list[tuple[float, float]]
) -> None:
    cells = [([a for a, _ in pairs], [b for _, b in pairs]) for pairs in (first, second)]
    estimate = ratio_of_means(cells)
    assert estimate is not None
    mine, other = (fmean(fmean(cell[i]) for cell in cells) for i in (0, 1))
    assert estimate.value == pytest.approx(mine / other)
    assert estimate.low <= estimate.high


def test_the_interval_is_that_of_all_resamples() -> None:
    """Twin: every one of the 5**5 draws with replacement, instead of some of them."""
    ours, theirs = [0.9, 0.1, 0.5, 0.7, 0.95], [0.2, 0.6, 0.4, 0.3, 0.8]
    every = sorted(
        fmean(ours[i] for i in chosen) / fmean(theirs[i] for i in chosen)
        for chosen in product(range(5), repeat=5)
    )
    estimate = ratio_of_means([(ours, theirs)])
    assert estimate is not None
    assert every[int(0.015 * len(every))] <= estimate.low <= every[int(0.035 * len(every))]
    assert every[int(0.965 * len(every))] <= estimate.high <= every[int(0.985 * len(every))]


def test_the_pairs_are_kept_together() -> None:
    """Scores that differ a lot between samples and not at all between methods."""
    scores = [0.0, 1.0, 1.0, 0.0, 0.3]
    assert ratio_of_means([(scores, scores)]) == (1, 1, 1)
    assert mean_difference(scores, scores) == (0, 0, 0)
    assert perplexity_ratio(scores * 99, scores * 99) == (1, 1, 1)


def test_nothing_can_be_a_share_of_nothing() -> None:
    assert ratio_of_means([([0.5], [0.0])]) is None
    estimate = ratio_of_means([([1.0, 1.0], [1.0, 0.0])])
    assert estimate is not None
    assert estimate.value == 2
    assert (estimate.low, estimate.high) == (1, math.inf)


def test_perplexity_is_compared_by_token() -> None:
    theirs = [2.0 + (i % 7) for i in range(1000)]
    ours = [loss - 0.1 for loss in theirs]
    estimate = perplexity_ratio(ours, theirs)
    assert estimate.value == pytest.approx(perplexity(ours) / perplexity(theirs))
    # The same at every token, so there is no doubt however different the tokens are.
    assert estimate.low == pytest.approx(estimate.high)


def test_what_cannot_be_paired() -> None:
    for call in (mean_difference, perplexity_ratio):
        with pytest.raises(InputError, match="2 and 1 samples cannot be paired"):
            call([1.0, 2.0], [1.0])
        with pytest.raises(InputError, match="0 and 0 samples"):
            call([], [])
    with pytest.raises(InputError, match="0 cells"):
        ratio_of_means([])
    with pytest.raises(InputError, match="1 and 2 samples"):
        ratio_of_means([([1.0], [1.0, 2.0])])


def test_of_one_sample_nothing_is_known() -> None:
    assert mean_difference([1.0], [0.5]) == (0.5, *UNKNOWN)
    assert ratio_of_means([([1.0], [0.5]), ([0.5], [0.5])]) == (1.5, *UNKNOWN)
    found = ratio_of_means([([1.0], [0.5]), ([0.5, 0.1], [0.5, 0.5])])
    assert found is not None
    assert math.isfinite(found.low)
