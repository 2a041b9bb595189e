"""A history for some heads: equal bytes, and the errors."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacache.errors import ConfigError
from lacache.policies import (
    KeptTokens,
    Ladder,
    RetrievalHeads,
    ShrinkingWindow,
    Timetable,
    kept_after,
    mean_capacity,
)
from lacache.policies.retrieval_heads import split_by_need

HEADS = (3,) * 10


@given(
    st.integers(64, 600),
    st.floats(0.1, 0.9),
    st.sets(st.tuples(st.integers(0, 9), st.integers(0, 2)), min_size=1, max_size=12),
    st.sampled_from([1, 8, 16]),
)
@settings(max_examples=100, deadline=None)
def test_the_bytes_are_those_of_the_capacity(
    capacity: int, window: float, pairs: set[tuple[int, int]], evict_batch: int
) -> None:
    if int(window * capacity) < 4 + evict_batch:
        return
    config = RetrievalHeads(
        capacity=capacity, history=tuple(pairs), window=window, evict_batch=evict_batch
    )
    groups = config.bind_groups(HEADS)
    assert {(n, h) for n, heads in groups[0].heads.items() for h in heads} == pairs
    assert mean_capacity(groups) == capacity
    in_the_end = sum(group.schedule.final_capacity * group.num_heads for group in groups) / 30
    # Less by the rounding to whole tokens and to whole refills of the history alone.
    share = len(pairs) / 30
    assert capacity - share * (evict_batch + 1) <= in_the_end <= capacity
    history, other = (kept_after(group.schedule, 3000).state for group in groups)
    assert history.num_seen == other.num_seen == 3000
    assert groups[0].schedule.capacity >= capacity > groups[1].schedule.final_capacity


def test_the_history_is_a_ladder_over_its_own_layers() -> None:
    config = RetrievalHeads(capacity=100, history=(2, 5, (7, 1)), window=0.3, unit=2, span=1)
    history, others = config.bind_groups(HEADS)
    assert list(history.heads) == [2, 5, 7]
    capacity = (100 * 30 - 30 * 23) // 7
    expected = Ladder(capacity=capacity, span=1, unit=2).bind(3)
    assert kept_after(history.schedule, 999).by_pattern == kept_after(expected, 999).by_pattern
    assert history.schedule.capacity == capacity
    window = ShrinkingWindow(100, 30, history_heads=7, window_heads=23).bind(10)
    assert kept_after(others.schedule, 999).by_pattern == kept_after(window, 999).by_pattern


def test_one_layer_alone_keeps_a_long_window() -> None:
    history, _ = RetrievalHeads(capacity=100, history=((4, 0), (4, 2))).bind_groups(HEADS)
    assert set(history.schedule.patterns) == {0}
    assert history.schedule.capacity == (100 * 30 - 50 * 28) // 2


def test_lists_are_as_good_as_tuples() -> None:
    tuples = RetrievalHeads(capacity=64, history=((0, 1), 2), tiers=((3, (4, 0)),))
    lists: Any = {"history": [[0, 1], 2], "tiers": [[3, [4, 0]]]}
    assert RetrievalHeads(capacity=64, **lists) == tuples
    assert hash(RetrievalHeads(capacity=64, **lists)) == hash(tuples)


def test_each_of_span_and_overlap_has_its_own_default() -> None:
    def ladder_of(**settings: int) -> Any:
        history = RetrievalHeads(capacity=100, history=tuple(range(6)), window=0.3, **settings)
        return history.bind_groups(HEADS)[0].schedule.config

    expected = Ladder(capacity=146, span=3)
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
        ({"tiers": 3}, "tiers=3 must be a sequence of tiers"),
        ({"tiers": (3,)}, "members=3 must be a sequence"),
        ({"tiers": ((2, 3),)}, "KV head 0 of layer 2 is in the groups 0 and 1"),
        ({"history": (10,)}, "layer 10 of a group must be below the number of layers 10"),
        ({"history": tuple(range(10))}, "history holds every KV head"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        RetrievalHeads(**{"capacity": 64, "history": (1, 2)} | settings).bind_groups(HEADS)
    assert message in str(raised.value)


@st.composite
def tiered(draw: st.DrawFn) -> RetrievalHeads:
    """A history and up to four tiers, of random heads."""
    pairs = draw(st.permutations([(layer, head) for layer in range(10) for head in range(3)]))
    edges = sorted(draw(st.sets(st.integers(1, 29), min_size=1, max_size=5)))
    history, *tiers = (tuple(pairs[a:b]) for a, b in zip([0, *edges[:-1]], edges, strict=True))
    return RetrievalHeads(
        capacity=draw(st.integers(40, 120)),
        history=history,
        tiers=tuple(tiers),
        window=draw(st.floats(0.2, 0.9)),
        evict_batch=draw(st.integers(1, 4)),
    )


@given(tiered())
@settings(max_examples=60, deadline=None)
def test_tiers_give_way_last_first_and_together_use_the_bytes(config: RetrievalHeads) -> None:
    groups = config.bind_groups(HEADS)
    kept = [KeptTokens(group.schedule) for group in groups]
    heads = [group.num_heads for group in groups]
    neediest = config.history_capacity(HEADS)
    for seen in range(1, min(neediest, 1500) + 1):
        for tokens in kept:
            tokens.read(1)
        held = [tokens.state.num_cached for tokens in kept]
        # Those with more need hold no less.
        assert held == sorted(held, reverse=True)
        total = sum(n * h for n, h in zip(held, heads, strict=True))
        assert total <= config.capacity * sum(heads)
        if seen <= config.capacity:
            assert total == seen * sum(heads)
        if all(t.schedule.is_full(t.state) for t in kept[1:] if t.state.num_evicted):
            # Lost by rounding: a token for each window, a evict_batch for each tier.
            lost = (1 + config.evict_batch) * (sum(heads) + len(kept))
            assert total >= min(seen, config.capacity) * sum(heads) - lost


@given(tiered())
@settings(max_examples=60, deadline=None)
def test_all_groups_compact_at_the_same_tokens_until_the_history_is_full(
    config: RetrievalHeads,
) -> None:
    full = config.history_capacity(HEADS)
    for group in config.bind_groups(HEADS):
        table = Timetable(group.schedule)
        for seen in range(config.capacity, full + 1):
            state = table.state_at(seen)
            if group.schedule.is_full(state):
                assert (seen - config.capacity) % config.evict_batch == 0


def test_need_splits_into_a_history_and_tiers_that_grow() -> None:
    order = tuple(range(20))
    assert split_by_need(order, 0.2, 0.0) == (order[:4],)
    assert split_by_need(order, 0.2, 0.5) == ((0, 1, 2, 3), (4,), (5,), (6,), (7,), (8, 9))
    assert split_by_need(order, 0.01, 0.05) == ((0,),)
    assert sum(split_by_need(order, 0.5, 1.0), ()) == order[:19]
