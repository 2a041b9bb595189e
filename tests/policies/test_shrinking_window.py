"""Windows that shrink as a history grows: the slow twin, the bytes, and the errors."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacache.errors import ConfigError
from lacache.policies import (
    KeptTokens,
    ModelShape,
    RetrievalHeads,
    ShrinkingWindow,
    Timetable,
    kept_after,
)
from tests.policies.group_strategies import shrinking_windows
from tests.policies.slow_window import shrunk


def slow_kept(sized: tuple[ShrinkingWindow, int], num_seen: int) -> list[int]:
    tokens: list[int] = []
    for token in range(num_seen):
        tokens = [*shrunk(*sized, tokens, token, int(sized[0].evict_batch)), token]
    return tokens


@given(shrinking_windows(), st.integers(0, 400))
@settings(max_examples=150, deadline=None)
def test_fast_equals_the_slow_twin(sized: tuple[ShrinkingWindow, int], num_seen: int) -> None:
    schedule = sized[0].schedule(2, sized[1])
    kept = kept_after(schedule, num_seen)
    assert kept.by_pattern == {0: slow_kept(sized, num_seen)}
    assert Timetable(schedule).state_at(num_seen) == kept.state


@given(shrinking_windows(), st.lists(st.integers(1, 40), max_size=12))
@settings(max_examples=100, deadline=None)
def test_chunks_do_not_matter(sized: tuple[ShrinkingWindow, int], chunks: list[int]) -> None:
    schedule = sized[0].schedule(1, sized[1])
    in_chunks = KeptTokens(schedule)
    for chunk in chunks:
        in_chunks.advance(chunk)
    assert in_chunks.by_pattern == kept_after(schedule, sum(chunks)).by_pattern


@given(shrinking_windows(), st.integers(1, 200))
@settings(max_examples=100, deadline=None)
def test_history_and_windows_share_the_bytes_to_the_last_slot(
    sized: tuple[ShrinkingWindow, int], num_seen: int
) -> None:
    window, capacity = sized
    kept = KeptTokens(window.schedule(1, capacity))
    history_capacity = kept.schedule.steady_from - 1
    heads = window.growing_heads + window.window_heads
    for seen in range(1, num_seen + 1):
        due = kept.schedule.is_full(kept.state)
        kept.advance(1)
        held = min(seen, history_capacity) * window.growing_heads
        held += kept.state.num_cached * window.window_heads
        assert held <= capacity * heads
        if seen <= capacity:
            assert held == seen * heads
            assert not due
        if kept.schedule.is_full(kept.state) and seen <= history_capacity:
            assert held > (capacity - 1) * heads


@given(shrinking_windows(), st.integers(0, 5000))
@settings(max_examples=50, deadline=None)
def test_in_the_end_it_is_a_window_of_the_least(
    sized: tuple[ShrinkingWindow, int], beyond: int
) -> None:
    window, capacity = sized
    schedule = window.schedule(1, capacity)
    num_seen = schedule.steady_from - 1 + schedule.evict_batch + beyond
    [tokens] = kept_after(schedule, num_seen).by_pattern.values()
    assert window.least - window.evict_batch <= len(tokens) <= window.least
    newest = len(tokens) - window.sinks
    assert tokens[window.sinks :] == list(range(num_seen - newest, num_seen))


def test_a_history_loses_nothing_within_the_budget() -> None:
    groups = RetrievalHeads(heads=((1,),), window=0.2).bind(ModelShape((2,) * 5), 100)
    for group in groups:
        assert kept_after(group.schedule, 100).by_pattern == {0: list(range(100))}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"least": 0}, "least=0 must be at least 1"),
        ({"least": 4}, "least=4 must be at least 5 = sinks 4 + evict_batch 1; try least=5"),
        ({"least": 65}, "least=65 must be at most capacity=64; try least=64"),
        ({"growing_heads": 0}, "growing_heads=0 must be at least 1"),
        ({"window_heads": 0}, "window_heads=0 must be at least 1"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    settings = {"least": 16, "growing_heads": 1, "window_heads": 2, "evict_batch": 1} | changes
    with pytest.raises(ConfigError) as raised:
        ShrinkingWindow(**settings).schedule(2, 64)
    assert message in str(raised.value)
