"""What every policy of layers promises. A new one adds a row and its slow twin."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacache.errors import ConfigError
from lacache.policies import (
    POLICIES,
    BudgetLike,
    Full,
    Ladder,
    LayerPolicy,
    ModelShape,
    Paper,
    Policy,
    ShrinkingWindow,
    Streaming,
    Timetable,
    Uniform,
    bind_policy,
    kept_after,
)
from tests.policies.slow_window import shrunk
from tests.policies.strategies import SizedLadder, ladders

NUM_LAYERS = 6
CAPACITY = 24
LADDER = Ladder(span=3, overlap=1, recent=6, evict_batch=2)
GENTLE = Ladder(
    span=3, overlap=2, recent=6, evict_batch=1, geometry="consecutive", window_layers=(1,)
)
PAPER_RECENT = 6  # 6 layers + 1 - 1 unit that a band of span 3 and overlap 0 frees
AS_PAPER = Ladder(span=3, overlap=0, recent=PAPER_RECENT, evict_batch=1)
SHRINKING = ShrinkingWindow(least=10, growing_heads=2, window_heads=3, evict_batch=3)


@dataclass
class Row:
    policy: LayerPolicy
    slow: Callable[[int], list[list[int]]]


def slow_ladder(ladder: Ladder) -> Callable[[int], list[list[int]]]:
    return lambda seen: SizedLadder(ladder, NUM_LAYERS, CAPACITY).slow(seen, settled=False)[1]


def slow_uniform(seen: int) -> list[list[int]]:
    # A band has 3 units of which 2 are kept, so there are phases 0 and 1; the middle is 0.
    return [slow_ladder(LADDER)(seen)[0]] * NUM_LAYERS


def slow_streaming(seen: int) -> list[list[int]]:
    tokens: list[int] = []
    for token in range(seen):
        if len(tokens) == CAPACITY:
            del tokens[4:7]
        tokens.append(token)
    return [tokens] * NUM_LAYERS


def slow_shrinking(seen: int) -> list[list[int]]:
    tokens: list[int] = []
    for token in range(seen):
        tokens = [*shrunk(SHRINKING, CAPACITY, tokens, token, int(SHRINKING.evict_batch)), token]
    return [tokens] * NUM_LAYERS


ROWS: dict[str, Row] = {
    "ladder": Row(LADDER, slow_ladder(LADDER)),
    "ladder, consecutive with a window": Row(GENTLE, slow_ladder(GENTLE)),
    "paper": Row(Paper(span=3), slow_ladder(AS_PAPER)),
    "uniform": Row(Uniform(span=3, overlap=1, recent=6, evict_batch=2), slow_uniform),
    "streaming": Row(Streaming(evict_batch=3), slow_streaming),
    "shrinking": Row(SHRINKING, slow_shrinking),
    "full": Row(Full(), lambda seen: [list(range(seen))] * NUM_LAYERS),
}


def test_every_registered_policy_of_layers_has_a_row() -> None:
    registered = {kind for kind in POLICIES if issubclass(kind, LayerPolicy)}
    assert {type(row.policy) for row in ROWS.values()} == registered


@pytest.mark.parametrize("name", ROWS)
@given(seen=st.integers(0, 400))
@settings(max_examples=40, deadline=None)
def test_keeps_what_the_slow_twin_keeps(name: str, seen: int) -> None:
    row = ROWS[name]
    schedule = row.policy.schedule(NUM_LAYERS, CAPACITY)
    kept = kept_after(schedule, seen)
    assert [kept.by_pattern[p] for p in schedule.patterns] == row.slow(seen)
    assert kept.state.num_cached <= schedule.capacity
    if name != "full":
        assert Timetable(schedule).state_at(seen) == kept.state


@pytest.mark.parametrize("name", [name for name in ROWS if name != "full"])
def test_the_smallest_capacity_works_and_less_does_not(name: str) -> None:
    policy = ROWS[name].policy
    smallest = policy.smallest_capacity(ModelShape.of_layers(NUM_LAYERS))
    schedule = policy.schedule(NUM_LAYERS, smallest)
    assert kept_after(schedule, 300).state.num_seen == 300
    with pytest.raises(ConfigError, match=rf"must be at (least {smallest}|most capacity)"):
        policy.schedule(NUM_LAYERS, smallest - 1)


@given(sized=ladders(), tokens=st.integers(1, 60))
@settings(deadline=None)
def test_a_budget_binds_exactly_from_the_smallest_capacity_on(
    sized: SizedLadder, tokens: int
) -> None:
    shape = ModelShape.of_layers(sized.num_layers)
    smallest = sized.policy.smallest_capacity(shape)

    def capacity(budget: BudgetLike) -> int:
        return bind_policy(
            sized.policy, budget, shape, bytes_per_token=1, prompt_tokens=tokens
        ).capacity

    assert capacity(1.0) == max(tokens, smallest)
    assert capacity(smallest) == smallest
    if tokens >= smallest:
        assert capacity(tokens) == tokens
    else:
        with pytest.raises(ConfigError, match=f"must be at least {smallest} tokens"):
            capacity(tokens)


def test_the_smallest_capacity_is_not_searched_for_a_budget_that_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(Policy, "smallest_capacity")
    shape = ModelShape.of_layers(NUM_LAYERS)
    bound = bind_policy(LADDER, CAPACITY, shape, bytes_per_token=1, prompt_tokens=1)
    assert bound.capacity == CAPACITY


@pytest.mark.parametrize("name", ROWS)
def test_schedules_compare_by_value(name: str) -> None:
    policy = ROWS[name].policy
    one, two = (policy.schedule(NUM_LAYERS, CAPACITY) for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)
    assert one != policy.schedule(NUM_LAYERS + 1, CAPACITY)
    assert one != Streaming(sinks=1, evict_batch=2).schedule(NUM_LAYERS, CAPACITY)
