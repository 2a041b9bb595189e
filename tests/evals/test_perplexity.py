import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lacache.evals.perplexity import (
    buckets,
    difference,
    doubling_edges,
    last_seen,
    perplexity,
    running,
)

SCORES = st.lists(st.floats(0, 20), min_size=1, max_size=80)


def test_an_even_guess_has_the_perplexity_of_its_choices() -> None:
    assert perplexity([math.log(7)] * 5) == pytest.approx(7)


def test_edges_double_from_the_capacity() -> None:
    assert doubling_edges(512, 4000) == [0, 512, 1024, 2048, 4000]
    assert doubling_edges(512, 512) == [0, 512]
    assert doubling_edges(512, 20) == [0, 20]


@given(SCORES, st.sets(st.integers(1, 90)))
def test_a_bucket_scores_exactly_its_tokens(nll: list[float], inner: set[int]) -> None:
    tokens = len(nll) + 1
    edges = [0, *sorted(e for e in inner if e < tokens), tokens]
    found = buckets(nll, edges)
    counted = 0
    for bucket in found:
        scores = [nll[t - 1] for t in range(bucket.start, bucket.stop) if t > 0]
        assert bucket.perplexity == pytest.approx(math.exp(sum(scores) / len(scores)))
        counted += len(scores)
    assert counted == len(nll)


@given(SCORES, st.integers(1, 40))
def test_running_windows_cover_the_text_once(nll: list[float], window: int) -> None:
    found = running(nll, window)
    assert found[-1].stop == len(nll) + 1
    for before, after in pairwise(found):
        assert before.stop == after.start
        assert before.stop - before.start == window or before is found[0]
    assert found[-1].stop - found[-1].start < 1.5 * window + 1


def test_a_difference_beyond_the_noise_is_clear_and_one_within_is_not() -> None:
    noise = random.Random(0)
    base = [noise.gauss(3, 1) for _ in range(4000)]
    higher = [x + noise.gauss(0.2, 1) for x in base]
    same = [x + noise.gauss(0, 1) for x in base]
    assert difference(higher, base).is_clear
    assert difference(higher, base).mean == pytest.approx(0.2, abs=0.05)
    assert not difference(same, base).is_clear
    # The error of a mean of 4000 values with a spread of 1.
    assert difference(same, base).error == pytest.approx(1 / math.sqrt(4000), rel=0.5)


def test_one_token_shows_nothing() -> None:
    gap = difference([3.0], [2.0])
    assert gap.mean == 1.0
    assert gap.error == math.inf
    assert not gap.is_clear


@given(st.lists(st.integers(0, 3), max_size=30))
def test_the_last_place_of_two_tokens_equals_a_search_backwards(ids: list[int]) -> None:
    expected = []
    for place in range(1, len(ids)):
        back = 1
        while (
            back < place and ids[place - back - 1 : place - back + 1] != ids[place - 1 : place + 1]
        ):
            back += 1
        expected.append(back if back < place else 0)
    assert last_seen(ids) == expected


def test_what_comes_for_the_first_time_has_no_distance() -> None:
    assert last_seen([5, 6, 7, 5, 6, 6]) == [0, 0, 0, 3, 0]
    assert last_seen([]) == last_seen([1]) == []
