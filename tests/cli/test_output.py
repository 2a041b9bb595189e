import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lacache import LaCache
from lacache.cli.output import format_bytes, format_numbers, report_record
from tests.engine.tiny import tiny_llama


def expand(text: str) -> list[int]:
    """Return the numbers that a text stands for."""
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


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 * 2**20 + 2**19, "5.5 MiB"),
        (3 * 2**40, "3.0 TiB"),
        (5000 * 2**40, "5000.0 TiB"),
    ],
)
def test_bytes_are_readable(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text


@pytest.mark.parametrize("policy", ["streaming", "full"])
def test_an_unbounded_capacity_is_null(policy: str) -> None:
    capacity = None if policy == "full" else 8
    record = report_record(LaCache(tiny_llama(), capacity, policy).report())
    assert record["capacity"] == capacity
    assert record["num_seen"] == 0
