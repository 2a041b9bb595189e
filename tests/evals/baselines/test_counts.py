"""The counts of scored caches, against a count token by token."""

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lacache.errors import ConfigError
from lacache.evals.baselines.attention_policies import pyramid
from lacache.evals.baselines.counts import TokenCounts
from lacache.policies import Streaming, kept_after

CAPACITIES = st.lists(st.integers(3, 30), min_size=1, max_size=5).map(tuple)


@given(CAPACITIES, st.integers(1, 29), st.integers(0, 200))
def test_the_closed_form_counts_as_token_by_token(
    capacities: tuple[int, ...], evict_batch: int, num_seen: int
) -> None:
    assume(evict_batch < min(capacities))
    counts = TokenCounts(capacities, evict_batch)
    held = (0,) * len(capacities)
    for _ in range(num_seen):
        if any(n == c for n, c in zip(held, capacities, strict=True)):
            held = tuple(min(n, c - evict_batch) for n, c in zip(held, capacities, strict=True))
        held = tuple(n + 1 for n in held)
        assert all(n <= c for n, c in zip(held, capacities, strict=True))
    assert counts.after(num_seen) == held


@given(CAPACITIES, st.integers(1, 29), st.lists(st.integers(1, 40), max_size=6))
def test_token_counts_come_to_the_same_in_chunks(
    capacities: tuple[int, ...], evict_batch: int, chunks: list[int]
) -> None:
    assume(evict_batch < min(capacities))
    counts = TokenCounts(capacities, evict_batch)
    for chunk in chunks:
        while chunk:
            length = min(chunk, counts.room())
            assert length >= 1
            counts.settle()
            counts.insert(length)
            chunk -= length
    assert counts.num_seen == sum(chunks)
    assert counts.held == counts.after(sum(chunks))


@given(st.integers(6, 40), st.integers(1, 30), st.integers(0, 200))
def test_equal_capacities_hold_what_a_sink_window_holds(
    capacity: int, evict_batch: int, num_seen: int
) -> None:
    assume(evict_batch + 4 <= capacity)
    window = Streaming(sinks=4, evict_batch=evict_batch).schedule(3, capacity)
    held = kept_after(window, num_seen).state.num_cached
    assert TokenCounts((capacity,) * 3, evict_batch).after(num_seen) == (held,) * 3


@given(
    st.integers(1, 2000),
    st.integers(1, 40),
    st.integers(0, 64),
    st.integers(1, 40),
    st.integers(0, 100),
)
def test_a_pyramid_holds_the_same_in_all(
    capacity: int, num_layers: int, window: int, beta: int, floor: int
) -> None:
    found = pyramid(capacity, num_layers, window=window, beta=beta, floor=floor)
    assert len(found) == num_layers
    assert sum(found) == capacity * num_layers
    assert min(found) >= min(capacity, floor)
    # A straight line but for the rounding to whole tokens.
    steps = [a - b for a, b in pairwise(found)]
    assert all(step >= 0 for step in steps)
    assert not steps or max(steps) - min(steps) <= 2


def test_a_pyramid_is_the_papers() -> None:
    # 64 beside a window of 8: 64 / 16 = 4 in the last layer and 2 x 64 - 4 = 124 in the first.
    found = pyramid(72, 5, window=8, beta=16, floor=0)
    assert found == (132, 102, 72, 42, 12)


@pytest.mark.parametrize(
    ("capacities", "evict_batch", "told"),
    [
        ((), 1, "at least one layer"),
        ((8, 4), 4, "evict_batch=4 must be below the smallest capacity 4; try evict_batch=1"),
        ((1,), 1, "evict_batch=1 must be below the smallest capacity 1; try capacity=2"),
        ((8,), 0, "evict_batch=0"),
    ],
)
def test_impossible_counts_are_refused(
    capacities: tuple[int, ...], evict_batch: int, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        TokenCounts(capacities, evict_batch)
