"""A history for some heads: equal bytes, and the errors."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacache.core import HistoryConfig, LadderConfig, ShrinkingWindow, kept_after, mean_capacity
from lacache.core.errors import ConfigError

HEADS = (3,) * 10


@given(
    st.integers(64, 600),
    st.floats(0.1, 0.9),
    st.sets(st.tuples(st.integers(0, 9), st.integers(0, 2)), min_size=1, max_size=12),
    st.sampled_from([1, 8, 16]),
)
@settings(max_examples=100, deadline=None)
def test_the_bytes_are_those_of_the_capacity(
    capacity: int, window: float, pairs: set[tuple[int, int]], refill: int
) -> None:
    if int(window * capacity) < 4 + refill:
        return
    config = HistoryConfig(capacity=capacity, history=tuple(pairs), window=window, refill=refill)
    groups = config.bind_groups(HEADS)
    assert {(n, h) for n, heads in groups[0].heads.items() for h in heads} == pairs
    mean = mean_capacity(groups)
    # Less by the rounding to whole tokens and to whole refills of the history alone.
    share = len(pairs) / 30
    assert capacity - share * (refill + 1) <= mean <= capacity
    history, other = (kept_after(group.schedule, 3000).state for group in groups)
    assert history.num_seen == other.num_seen == 3000
    assert groups[0].schedule.capacity > capacity > groups[1].schedule.final_capacity


def test_the_history_is_a_ladder_over_its_own_layers() -> None:
    config = HistoryConfig(capacity=100, history=(2, 5, (7, 1)), window=0.3, unit=2, span=1)
    history, others = config.bind_groups(HEADS)
    assert list(history.heads) == [2, 5, 7]
    capacity = (100 * 30 - 30 * 23) // 7
    expected = LadderConfig(capacity=capacity, span=1, unit=2).bind(3)
    assert kept_after(history.schedule, 999).by_pattern == kept_after(expected, 999).by_pattern
    assert history.schedule.capacity == capacity
    window = ShrinkingWindow(100, 30, history_heads=7, window_heads=23).bind(10)
    assert kept_after(others.schedule, 999).by_pattern == kept_after(window, 999).by_pattern


def test_one_layer_alone_keeps_a_long_window() -> None:
    history, _ = HistoryConfig(capacity=100, history=((4, 0), (4, 2))).bind_groups(HEADS)
    assert set(history.schedule.patterns) == {0}
    assert history.schedule.capacity == (100 * 30 - 50 * 28) // 2


def test_each_of_span_and_overlap_has_its_own_default() -> None:
    def ladder_of(**settings: int) -> Any:
        history = HistoryConfig(capacity=100, history=tuple(range(6)), window=0.3, **settings)
        return history.bind_groups(HEADS)[0].schedule.config

    expected = LadderConfig(capacity=146, span=3, refill=4)
    assert ladder_of() == replace(expected, overlap=2)
    assert ladder_of(overlap=1) == replace(expected, overlap=1)
    assert ladder_of(span=3) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 1.0}, "window=1.0 as a share must be in (0, 1)"),
        ({"capacity": 0}, "capacity=0 must be at least 1"),
        ({"history": ()}, "members=() leaves a group without layers"),
        ({"window": "wide"}, "window='wide' as a share must be in (0, 1)"),
        ({"capacity": 8}, "window=0.5 of capacity=8 is 4 tokens, and at least 5"),
        ({"capacity": 8}, "try capacity=10"),
        ({"history": (10,)}, "layer 10 of a group must be below the number of layers 10"),
        ({"history": tuple(range(10))}, "history holds every KV head"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        HistoryConfig(**{"capacity": 64, "history": (1, 2)} | settings).bind_groups(HEADS)
    assert message in str(raised.value)
