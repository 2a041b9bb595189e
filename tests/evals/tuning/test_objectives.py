import itertools
import math
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lacache.evals.tuning.objectives import Excerpt, against, figures

LOSSES = st.lists(st.floats(0, 20), min_size=3, max_size=3)


def excerpt(tokens: list[float], needles: list[float], peak: float = 100.0) -> Excerpt:
    sizes = {"mean_bytes": peak / 2, "peak_bytes": peak}
    scores = [float(loss < 5) for loss in needles]
    return Excerpt(
        {"nll": tokens, "seconds": 2.0, **sizes},
        {"samples": [{"nlls": needles, "scores": scores}], "seconds": 0.5, **sizes},
    )


EXCERPTS = st.lists(
    st.builds(excerpt, st.lists(st.floats(0, 8), min_size=1, max_size=9), LOSSES),
    min_size=1,
    max_size=4,
)


@given(EXCERPTS)
def test_figures_are_over_all_tokens_and_needles(excerpts: list[Excerpt]) -> None:
    found = figures(excerpts)
    tokens = [value for s in excerpts for value in s.text["nll"]]
    needles = [value for s in excerpts for value in s.needles["samples"][0]["nlls"]]
    assert found.perplexity == pytest.approx(math.exp(fmean(tokens)))
    assert found.loss == pytest.approx(fmean(needles))
    assert found.score == pytest.approx(fmean(float(value < 5) for value in needles))
    assert found.excerpts == len(excerpts)
    assert found.needles == 3 * len(excerpts)
    assert found.point == (found.perplexity, found.loss)
    low, high = found.loss_interval
    assert min(needles) - 1e-9 <= low <= high <= max(needles) + 1e-9


def test_sizes_are_the_mean_and_the_highest_peak() -> None:
    found = figures([excerpt([1.0], [1.0] * 3, 100.0), excerpt([1.0], [1.0] * 3, 300.0)])
    assert found.mean_bytes == 100.0
    assert found.peak_bytes == 300.0
    assert excerpt([1.0], [1.0] * 3).seconds == 2.5


def test_pairing_takes_out_what_both_share() -> None:
    tokens = [[float(i % 7) for i in range(200)], [float(i % 5) for i in range(200)]]
    needles = [[1.0, 9.0, 17.0], [4.0, 2.0, 11.0]]
    mine = [
        excerpt([t - 0.1 for t in ts], [n - 2 for n in ns])
        for ts, ns in zip(tokens, needles, strict=True)
    ]
    others = [excerpt(ts, ns) for ts, ns in zip(tokens, needles, strict=True)]
    found = against(mine, others)
    assert found.ratio == pytest.approx(math.exp(-0.1))
    assert found.ratio_interval == pytest.approx((math.exp(-0.1),) * 2)
    assert found.loss == pytest.approx(-2.0)
    assert found.loss_interval == pytest.approx((-2.0, -2.0))
    with pytest.raises(ValueError, match="zip"):
        against(mine, others[:1])


def test_needles_of_one_excerpt_are_drawn_together() -> None:
    losses = [[1.0, 2.0, 9.0], [3.0, 3.0, 3.0], [12.0, 6.0, 6.0], [0.0, 1.0, 2.0]]
    found = figures([excerpt([1.0, 2.0], of) for of in losses])
    means = [fmean(of) for of in losses]
    # The slow twin: every way to draw four excerpts of four.
    drawn = sorted(fmean(chosen) for chosen in itertools.product(means, repeat=4))
    low, high = drawn[round(0.025 * len(drawn))], drawn[round(0.975 * len(drawn)) - 1]
    assert found.loss_interval == pytest.approx((low, high), abs=0.3)
    # As often as not the same losses in other excerpts say more, or less.
    mixed = [[losses[(i + j) % 4][j] for j in range(3)] for i in range(4)]
    other = figures([excerpt([1.0, 2.0], of) for of in mixed])
    assert other.loss == pytest.approx(found.loss)
    assert other.loss_interval != pytest.approx(found.loss_interval, abs=0.1)
    shifted = [excerpt([1.0, 2.0], [value + 2 for value in of]) for of in losses]
    relative = against(shifted, [excerpt([1.0, 2.0], of) for of in losses])
    assert relative.excerpts == 4
    assert relative.loss_interval == pytest.approx((2.0, 2.0))
