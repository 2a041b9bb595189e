from hypothesis import given
from hypothesis import strategies as st

from lacache.evals.tuning.objectives import Point, pareto_front, ranked

# Few values, so that many are equal.
POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12)


def beats(one: Point, other: Point) -> bool:
    return one[0] <= other[0] and one[1] <= other[1] and one != other


def slow_front(points: list[Point]) -> set[int]:
    return {i for i, mine in enumerate(points) if not any(beats(other, mine) for other in points)}


@given(POINTS)
def test_the_front_is_what_nothing_beats(points: list[Point]) -> None:
    found = pareto_front(points)
    assert set(found) == slow_front(points)
    assert len(found) == len(set(found))
    assert found == sorted(found, key=lambda i: points[i])


@given(POINTS)
def test_points_are_ranked_by_fronts_and_never_after_what_they_beat(points: list[Point]) -> None:
    order = ranked(points)
    assert sorted(order) == list(range(len(points)))
    layers = []
    left = set(order)
    while left:
        some = sorted(left)
        layers.append({some[i] for i in slow_front([points[j] for j in some])})
        left -= layers[-1]
    sizes = [len(layer) for layer in layers]
    for number, layer in enumerate(layers):
        start = sum(sizes[:number])
        assert set(order[start : start + sizes[number]]) == layer


def test_within_a_front_what_is_good_in_both_comes_first() -> None:
    points = [(0.0, 9.0), (9.0, 0.0), (1.0, 1.0), (2.0, 2.0), (8.0, 8.0)]
    assert ranked(points)[0] == 2
    assert ranked(points)[3:] == [3, 4]
