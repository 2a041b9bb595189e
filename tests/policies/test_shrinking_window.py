"""Windows that shrink as a history grows: the slow twin, the bytes, and the errors."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacache.errors import ConfigError
from lacache.policies import KeptTokens, RetrievalHeads, ShrinkingWindow, Timetable, kept_after
from tests.policies.group_strategies import shrinking_windows
from tests.policies.slow_window import shrunk


def slow_kept(window: ShrinkingWindow, num_seen: int) -> list[int]:
    tokens: list[int] = []
    for token in range(num_seen):
        tokens = [*shrunk(window, tokens, token), token]
    return tokens


@given(shrinking_windows(), st.integers(0, 400))
@settings(max_examples=150, deadline=None)
def test_fast_equals_the_slow_twin(window: ShrinkingWindow, num_seen: int) -> None:
    schedule = window.bind(2)
    kept = kept_after(schedule, num_seen)
    assert kept.by_pattern == {0: slow_kept(window, num_seen)}
    assert Timetable(schedule).state_at(num_seen) == kept.state


@given(shrinking_windows(), st.lists(st.integers(1, 40), max_size=12))
@settings(max_examples=100, deadline=None)
def test_chunks_do_not_matter(window: ShrinkingWindow, chunks: list[int]) -> None:
    in_chunks = KeptTokens(window.bind(1))
    for chunk in chunks:
        in_chunks.read(chunk)
    assert in_chunks.by_pattern == kept_after(window.bind(1), sum(chunks)).by_pattern


@given(shrinking_windows(), st.integers(1, 200))
@settings(max_examples=100, deadline=None)
def test_history_and_windows_share_the_bytes_to_the_last_slot(
    window: ShrinkingWindow, num_seen: int
) -> None:
    kept = KeptTokens(window.bind(1))
    heads = window.history_heads + window.window_heads
    for seen in range(1, num_seen + 1):
        due = kept.schedule.is_full(kept.state)
        kept.read(1)
        held = min(seen, window.history_capacity) * window.history_heads
        held += kept.state.num_cached * window.window_heads
        assert held <= window.capacity * heads
        if seen <= window.capacity:
            assert held == seen * heads
            assert not due
        if kept.schedule.is_full(kept.state) and seen <= window.history_capacity:
            assert held > (window.capacity - 1) * heads


@given(shrinking_windows(), st.integers(0, 5000))
@settings(max_examples=50, deadline=None)
def test_far_ahead_is_a_window_of_the_least(window: ShrinkingWindow, beyond: int) -> None:
    num_seen = window.history_capacity + window.evict_batch + beyond
    [tokens] = kept_after(window.bind(1), num_seen).by_pattern.values()
    assert window.least - window.evict_batch <= len(tokens) <= window.least
    newest = len(tokens) - window.sinks
    assert tokens[window.sinks :] == list(range(num_seen - newest, num_seen))


def test_a_history_loses_nothing_within_the_budget() -> None:
    groups = RetrievalHeads(capacity=100, history=(1,), window=0.2).bind_groups((2,) * 5)
    for group in groups:
        assert kept_after(group.schedule, 100).by_pattern == {0: list(range(100))}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"least": 0}, "least=0 must be at least 1"),
        ({"least": 4}, "least=4 must be at least 5 = sinks 4 + evict_batch 1; try least=5"),
        ({"least": 65}, "least=65 must be at most capacity=64; try least=64"),
        ({"history_heads": 0}, "history_heads=0 must be at least 1"),
        ({"window_heads": 0}, "window_heads=0 must be at least 1"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    settings = {"capacity": 64, "least": 16, "history_heads": 1, "window_heads": 2} | changes
    with pytest.raises(ConfigError) as raised:
        ShrinkingWindow(**settings)
    assert message in str(raised.value)
