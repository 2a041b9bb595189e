"""The tokens that a press keeps, compared with the slow reference."""

from dataclasses import asdict
from fractions import Fraction
from math import ceil
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lacache.integrations.kvpress import LadderPress
from lacache.policies import Ladder, ModelShape, kept_after
from tests.policies.strategies import SizedLadder, ladders


def kept_by(press: LadderPress, num_layers: int, num_tokens: int) -> list[list[int]]:
    """Return per layer the tokens that a press keeps; keys and values are token numbers."""
    numbers = torch.arange(num_tokens).view(1, 1, -1, 1)
    config = SimpleNamespace(num_hidden_layers=num_layers)
    found = []
    for layer in range(num_layers):
        attention: Any = SimpleNamespace(config=config, layer_idx=layer)
        keys, values = press.compress(attention, numbers, numbers, numbers, None, {})
        assert torch.equal(keys, values)
        found.append(keys.flatten().tolist())
    return found


@given(ladders(), st.integers(1, 200), st.integers(1, 99))
def test_equals_the_reference(ladder: SizedLadder, num_tokens: int, evicted: int) -> None:
    share = Fraction(100 - evicted, 100)
    smallest = ladder.policy.smallest_capacity(ModelShape.of_layers(ladder.num_layers))
    ladder = ladder._replace(capacity=max(ceil(share * num_tokens), smallest))
    _, expected = ladder.slow(num_tokens, settled=True)
    press = LadderPress(evicted / 100, **asdict(ladder.policy), rerotate=False)
    assert kept_by(press, ladder.num_layers, num_tokens) == expected


def test_the_default_is_the_ladder_of_the_cache() -> None:
    schedule = Ladder().schedule(12, 50)
    kept = kept_after(schedule, 200)
    kept.settle()
    expected = [kept.by_pattern[pattern] for pattern in schedule.patterns]
    assert kept_by(LadderPress(0.75, rerotate=False), 12, 200) == expected


@pytest.mark.parametrize("ratio", [0, 0.0])
def test_ratio_0_evicts_nothing(ratio: float) -> None:
    assert kept_by(LadderPress(ratio), 3, 20) == [list(range(20))] * 3


def test_a_ratio_set_later() -> None:
    press = LadderPress(0.9, rerotate=False)
    press.compression_ratio = 0.5
    assert kept_by(press, 6, 99) == kept_by(LadderPress(0.5, rerotate=False), 6, 99)
