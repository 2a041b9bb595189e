from hypothesis import given
from hypothesis import strategies as st

from lacache.evals.tasks.task import count_tokens, largest_fitting
from tests.engine.tiny import tiny_tokenizer


@given(
    least=st.integers(0, 30),
    extra=st.integers(0, 200),
    limit=st.integers(-10, 300),
    start=st.integers(-5, 300),
)
def test_search_agrees_with_trying_all(least: int, extra: int, limit: int, start: int) -> None:
    most = least + extra
    all_that_fit = [size for size in range(least, most + 1) if size <= limit]
    found = largest_fitting(lambda size: size, limit, least=least, most=most, start=start)
    assert found == max(all_that_fit, default=None)


@given(good=st.sets(st.integers(0, 100)), start=st.integers(0, 100))
def test_what_is_found_fits_and_one_more_does_not(good: set[int], start: int) -> None:
    found = largest_fitting(lambda size: size not in good, 0, least=0, most=100, start=start)
    if found is None:
        assert 0 not in good
    else:
        assert found in good
        assert found == 100 or found + 1 not in good


def test_parts_are_counted_one_by_one_after_a_start_token() -> None:
    tokenizer = tiny_tokenizer()
    assert count_tokens(tokenizer, "the") == 1
    assert count_tokens(tokenizer, "t", "he") == 3

    def starting(text: str, *, add_special_tokens: bool = True, **options: bool) -> object:
        found = tokenizer(text, add_special_tokens=False, **options)
        if add_special_tokens:
            found["input_ids"] = [1, *found["input_ids"]]
        return found

    assert count_tokens(starting, "the", "the") == 3
