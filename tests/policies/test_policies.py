"""What every policy promises. A new policy adds a row and its slow twin."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacache.errors import ConfigError
from lacache.policies import POLICIES, Full, Ladder, Policy, Streaming, Timetable, kept_after
from lacache.policies.reference import reference_kept

NUM_LAYERS = 6
LADDER = Ladder(capacity=24, span=3, overlap=1, recent=6, evict_batch=2)
GENTLE = Ladder(
    capacity=24, span=3, overlap=2, recent=6, geometry="consecutive", window_layers=(1,)
)


def slow_ladder(config: Ladder) -> Callable[[int], list[list[int]]]:
    return lambda seen: reference_kept(config, NUM_LAYERS, 6, seen, settled=False)[1]


def slow_streaming(seen: int) -> list[list[int]]:
    tokens: list[int] = []
    for token in range(seen):
        if len(tokens) == 20:
            del tokens[4:7]
        tokens.append(token)
    return [tokens] * NUM_LAYERS


ROWS: dict[str, tuple[Policy, Callable[[int], list[list[int]]]]] = {
    "ladder": (LADDER, slow_ladder(LADDER)),
    "ladder, consecutive with a window": (GENTLE, slow_ladder(GENTLE)),
    "streaming": (Streaming(20, evict_batch=3), slow_streaming),
    "full": (Full(), lambda seen: [list(range(seen))] * NUM_LAYERS),
}


def test_every_registered_policy_has_a_row() -> None:
    assert {type(policy) for policy, _ in ROWS.values()} == set(POLICIES.values())


@pytest.mark.parametrize("name", ROWS)
@given(seen=st.integers(0, 400))
@settings(max_examples=40, deadline=None)
def test_keeps_what_the_slow_twin_keeps(name: str, seen: int) -> None:
    policy, slow = ROWS[name]
    schedule = policy.bind(NUM_LAYERS)
    kept = kept_after(schedule, seen)
    assert [kept.by_pattern[p] for p in schedule.patterns] == slow(seen)
    assert kept.state.num_cached <= schedule.capacity
    if not isinstance(policy, Full):
        assert Timetable(schedule).state_at(seen) == kept.state


@pytest.mark.parametrize("name", [name for name in ROWS if name != "full"])
def test_the_smallest_capacity_works_and_less_does_not(name: str) -> None:
    policy: Any = ROWS[name][0]
    smallest = policy.smallest_capacity(NUM_LAYERS)
    schedule = replace(policy, capacity=smallest).bind(NUM_LAYERS)
    assert kept_after(schedule, 300).state.num_seen == 300
    with pytest.raises(ConfigError, match=f"must be at least {smallest}"):
        replace(policy, capacity=smallest - 1).bind(NUM_LAYERS)
