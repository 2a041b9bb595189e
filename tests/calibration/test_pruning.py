from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lacache.calibration.calibrate import Pair, prune, round_sizes
from lacache.errors import ConfigError


@given(st.integers(1, 200), st.floats(0.01, 1))
def test_rounds_shrink_to_nothing(count: int, share: float) -> None:
    sizes = [*round_sizes(count, share), 0]
    assert sizes[0] == count
    assert all(a - b == max(1, int(share * a)) for a, b in pairwise(sizes))


@pytest.mark.parametrize("share", [0, -0.5, 1.5])
def test_an_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="must lie above 0"):
        prune([(0, 0)], lambda _full, pairs: [0.0] * (1 + len(pairs)), share=share)


@given(st.lists(st.integers(-3, 9), min_size=1, max_size=30), st.floats(0.01, 1))
def test_heads_that_do_not_stand_in_for_each_other_come_by_cost(
    weights: list[int], share: float
) -> None:
    pairs = [(number // 3, number % 3) for number in range(len(weights))]
    weight = dict(zip(pairs, weights, strict=True))

    def costs(full: frozenset[Pair], asked: Sequence[Pair]) -> list[float]:
        base = sum(weight[pair] for pair in pairs if pair not in full)
        return [base, *(base + weight[pair] for pair in asked)]

    ranking = prune(pairs, costs, share=share)

    assert ranking.importance == weight
    assert [weight[pair] for pair in ranking.order] == sorted(weights, reverse=True)
    assert ranking.loss_left[0] == (0, 1.0)
    for count, cost in ranking.loss_left[1:]:
        assert cost == sum(weight[pair] for pair in ranking.order[count:])


def test_two_heads_that_stand_in_for_each_other_are_not_both_given_up() -> None:
    # Either of the first two will do; the third is worth little.
    pairs = [(0, 0), (1, 0), (2, 0)]

    def cost(full: frozenset[Pair]) -> float:
        has_one = (0, 0) in full or (1, 0) in full
        return (0.0 if has_one else 10.0) + (0.0 if (2, 0) in full else 1.0)

    def costs(full: frozenset[Pair], asked: Sequence[Pair]) -> list[float]:
        return [cost(full), *(cost(full - {pair}) for pair in asked)]

    ranking = prune(pairs, costs, share=0.25)

    assert ranking.importance[1, 0] == 0.0 < ranking.importance[2, 0]
    assert ranking.order == [(1, 0), (2, 0), (0, 0)]
