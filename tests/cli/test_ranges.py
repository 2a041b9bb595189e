import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lacache.cli.output import format_numbers


def expand(text: str) -> list[int]:
    """What a description says, as a reader takes it."""
    numbers: list[int] = []
    for run in text.split(", ") if text else []:
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?: by (\d+))?)?", run)
        assert match is not None, run
        first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
        numbers += range(first, last + 1, step)
    return numbers


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([], ""),
        ([3], "3"),
        ([3, 4], "3-4"),
        ([3, 7], "3, 7"),
        ([0, 1, 2, 3, 5, 7, 9], "0-3, 5-9 by 2"),
        ([0, 2, 4, 5, 6, 7], "0-4 by 2, 5-7"),
        (range(1000), "0-999"),
    ],
)
def test_runs_are_short(numbers: list[int], text: str) -> None:
    assert format_numbers(numbers) == text


@given(st.sets(st.integers(0, 60)))
def test_the_text_contains_all_numbers(numbers: set[int]) -> None:
    text = format_numbers(sorted(numbers))
    shown = re.sub(r"\.\.\. (\d+) more runs \.\.\., ", "", text)
    if shown == text:
        assert expand(text) == sorted(numbers)
    else:
        assert len(shown.split(", ")) == 10
        assert set(expand(shown)) < numbers


def test_many_runs_are_shortened_in_the_middle() -> None:
    numbers = [n * n for n in range(100)]
    assert format_numbers(numbers) == (
        "0-1, 4, 9, 16, 25, 36, ... 89 more runs ..., 9216, 9409, 9604, 9801"
    )
