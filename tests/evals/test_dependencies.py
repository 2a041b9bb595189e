from hypothesis import given
from hypothesis import strategies as st

from lacache.evals.dependencies import last_seen


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
