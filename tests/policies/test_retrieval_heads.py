"""A history for some heads: equal bytes, and the errors."""

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lacache.errors import ConfigError
from lacache.policies import (
    KeptTokens,
    Ladder,
    ModelShape,
    RetrievalHeads,
    ShrinkingWindow,
    Streaming,
    Timetable,
    kept_after,
    mean_capacity,
    parse_policy,
)
from lacache.policies.retrieval_heads import split_by_importance

HEADS = (3,) * 10
SHAPE = ModelShape(HEADS)


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
    policy = RetrievalHeads(heads=(tuple(pairs),), window=window, evict_batch=evict_batch)
    try:
        groups = policy.bind(SHAPE, capacity)
    except ConfigError as error:
        # A short history has too few whole bands.
        if f"evict_batch={evict_batch} is more than" not in str(error):
            raise
        assume(False)
    assert {(n, h) for n, heads in groups[0].heads.items() for h in heads} == pairs
    assert mean_capacity(groups) == capacity
    in_the_end = sum(group.schedule.final_capacity * group.num_heads for group in groups) / 30
    # Less by the rounding to whole tokens and to whole batches of the history alone.
    share = len(pairs) / 30
    assert capacity - share * (evict_batch + 1) <= in_the_end <= capacity
    history, other = (kept_after(group.schedule, 3000).state for group in groups)
    assert history.num_seen == other.num_seen == 3000
    assert groups[0].schedule.capacity >= capacity > groups[1].schedule.final_capacity


def test_the_history_is_a_ladder_over_its_own_layers() -> None:
    policy = RetrievalHeads(heads=((2, 5, (7, 1)),), window=0.3, unit=2, span=1, evict_batch=1)
    history, others = policy.bind(SHAPE, 100)
    assert list(history.heads) == [2, 5, 7]
    # A batch of the ladder's 4 slots, and a history that is full with the windows.
    capacity = (100 * 30 - 30 * 23) // 7
    capacity -= (capacity - 100) % 4
    expected = Ladder(span=1, unit=2, evict_batch=1).schedule(3, capacity)
    assert kept_after(history.schedule, 999).by_pattern == kept_after(expected, 999).by_pattern
    assert history.schedule.capacity == capacity
    window = ShrinkingWindow(least=30, growing_heads=7, window_heads=23, evict_batch=4)
    expected_window = window.schedule(10, 100)
    assert kept_after(others.schedule, 999).by_pattern == (
        kept_after(expected_window, 999).by_pattern
    )


def test_one_layer_alone_keeps_a_long_window() -> None:
    policy = RetrievalHeads(heads=(((4, 0), (4, 2)),), window=0.5, evict_batch=1)
    history, _ = policy.bind(SHAPE, 100)
    assert set(history.schedule.patterns) == {0}
    assert history.schedule.capacity == (100 * 30 - 50 * 28) // 2


def test_lists_are_as_good_as_tuples() -> None:
    tuples = RetrievalHeads(heads=(((0, 1), 2), (3, (4, 0))))
    lists: Any = [[[0, 1], 2], [3, [4, 0]]]
    assert RetrievalHeads(heads=lists) == tuples
    assert hash(RetrievalHeads(heads=lists)) == hash(tuples)


def test_the_history_has_the_ladder_s_settings() -> None:
    settings: dict[str, Any] = {"span": 3, "overlap": 1, "recent": 40, "unit": 2}
    policy = RetrievalHeads(heads=(tuple(range(6)),), window=0.3, evict_batch=4, **settings)
    history = policy.bind(SHAPE, 100)[0]
    expected = Ladder(evict_batch=4, **settings)
    assert history.schedule == expected.schedule(6, history.schedule.capacity)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 1.0}, "window=1.0 as a share must be in (0, 1)"),
        ({"heads": ((),)}, "heads=((),) has an empty tier"),
        ({"window": "wide"}, "window='wide' must be a number"),
        (
            {"capacity": 8},
            "streaming heads have 4 of capacity=8 tokens (window=0.5), and at least 5",
        ),
        ({"heads": 3}, "heads=3 must be a sequence of tiers"),
        ({"heads": (3,)}, "heads=3 must be a sequence"),
        ({"heads": ((1, 2), (2, 3))}, "KV head 0 of layer 2 is in the groups 0 and 1"),
        ({"heads": ((10,),)}, "layer 10 of a group must be below the number of layers 10"),
        ({"heads": (tuple(range(10)),)}, "every KV head is among the retrieval heads"),
        ({"share": 0.1}, "heads cannot be given with share=0.1"),
        ({"most": 0.1}, "heads cannot be given with share=None or most=0.1"),
        ({"share": 1.5, "heads": ()}, "share=1.5 as a share must be in (0, 1)"),
        ({"without_profile": "guess"}, "without_profile='guess' must be 'ladder' or 'depth'"),
        ({"evict_batch": 30}, "at least 34 = sinks 4 + evict_batch 30 are needed"),
        ({"geometry": "spiral"}, "geometry='spiral' must be one of"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"heads": ((1, 2),), "window": 0.5} | settings
    capacity = given.pop("capacity", 64)
    with pytest.raises(ConfigError) as raised:
        RetrievalHeads(**given).bind(SHAPE, capacity)
    assert message in str(raised.value)


@st.composite
def tiered(draw: st.DrawFn) -> tuple[RetrievalHeads, int]:
    """A history and up to four tiers, of random heads, and a capacity."""
    pairs = draw(st.permutations([(layer, head) for layer in range(10) for head in range(3)]))
    edges = sorted(draw(st.sets(st.integers(1, 29), min_size=1, max_size=5)))
    tiers = tuple(tuple(pairs[a:b]) for a, b in zip([0, *edges[:-1]], edges, strict=True))
    policy = RetrievalHeads(
        heads=tiers, window=draw(st.floats(0.2, 0.9)), evict_batch=draw(st.integers(1, 4))
    )
    capacity = draw(st.integers(40, 120))
    try:
        policy.bind(SHAPE, capacity)
    except ConfigError:
        # A short history cannot free as many slots at once.
        assume(False)
    return policy, capacity


@given(tiered())
@settings(max_examples=60, deadline=None)
def test_tiers_cede_their_slots_last_first_and_together_use_the_bytes(
    sized: tuple[RetrievalHeads, int],
) -> None:
    policy, capacity = sized
    groups = policy.bind(SHAPE, capacity)
    kept = [KeptTokens(group.schedule) for group in groups]
    heads = [group.num_heads for group in groups]
    for seen in range(1, min(groups[0].schedule.capacity, 1500) + 1):
        for tokens in kept:
            tokens.advance(1)
        held = [tokens.state.num_cached for tokens in kept]
        # More important heads hold no less.
        assert held == sorted(held, reverse=True)
        total = sum(n * h for n, h in zip(held, heads, strict=True))
        assert total <= capacity * sum(heads)
        if seen <= capacity:
            assert total == seen * sum(heads)
        if all(t.schedule.is_full(t.state) for t in kept[1:] if t.state.num_evicted):
            # Lost by rounding: a token for each window, a batch for each tier.
            lost = (1 + groups[0].schedule.evict_batch) * (sum(heads) + len(kept))
            assert total >= min(seen, capacity) * sum(heads) - lost


@given(tiered())
@settings(max_examples=60, deadline=None)
def test_all_groups_compact_at_the_same_tokens_until_the_history_is_full(
    sized: tuple[RetrievalHeads, int],
) -> None:
    policy, capacity = sized
    groups = policy.bind(SHAPE, capacity)
    for group in groups:
        table = Timetable(group.schedule)
        for seen in range(capacity, groups[0].schedule.capacity + 1):
            state = table.state_at(seen)
            if group.schedule.is_full(state):
                assert (seen - capacity) % groups[0].schedule.evict_batch == 0


def test_importance_splits_into_a_history_and_tiers_that_grow() -> None:
    order = tuple(range(20))
    assert split_by_importance(order, 4, 0) == (order[:4],)
    assert split_by_importance(order, 4, 10) == ((0, 1, 2, 3), (4,), (5,), (6,), (7,), (8, 9))
    assert split_by_importance(order, 0, 1) == ((0,),)
    assert sum(split_by_importance(order, 10, 20), ()) == order[:19]


@pytest.mark.parametrize("name", ["balanced", "recall", "recall:share=0.5"])
@pytest.mark.parametrize("heads", [1, 2, 8])
def test_one_growing_layer_without_a_profile_has_a_window(name: str, heads: int) -> None:
    (group,) = parse_policy(name).bind(ModelShape((heads,)), 40)
    assert group.schedule == Streaming().schedule(1, 40)


def test_errors_of_the_history_say_whose_they_are() -> None:
    policy = RetrievalHeads(heads=((1, 2),), span=5)
    with pytest.raises(
        ConfigError, match=r"history of the retrieval heads, \d+ tokens in 2 layers"
    ):
        policy.bind(SHAPE, 64)
