from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lacache.policies import KeptTokens, Ladder, ModelShape, Uniform, kept_after

SETTINGS: list[dict[str, Any]] = [
    {"span": 3, "sinks": 2, "evict_batch": 6},
    {"span": 3, "overlap": 2, "sinks": 2, "recent": 10},
    {"span": 2, "unit": 3, "sinks": 1, "recent": 0},
]


@pytest.mark.parametrize("settings", SETTINGS)
@given(num_seen=st.integers(0, 400))
def test_all_layers_keep_what_one_layer_of_the_ladder_keeps(
    settings: dict[str, Any], num_seen: int
) -> None:
    uniform = Uniform(**settings).schedule(6, 40)
    (pattern,) = set(uniform.patterns)
    assert len(uniform.patterns) == 6
    kept = kept_after(uniform, num_seen)
    expected = KeptTokens(Ladder(**settings).schedule(6, 40))
    expected.advance(num_seen)
    assert kept.state == expected.state
    assert kept.by_pattern == {pattern: expected.by_pattern[pattern]}


@pytest.mark.parametrize("settings", SETTINGS)
def test_it_needs_the_room_that_the_ladder_needs(settings: dict[str, Any]) -> None:
    shape = ModelShape.of_layers(6)
    ladder = Ladder(**settings)
    assert Uniform(**settings).smallest_capacity(shape) == ladder.smallest_capacity(shape)
