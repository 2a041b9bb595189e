"""Which tokens stay, against the slow twin of the core."""

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
from lacache.policies import Ladder, default_span_overlap, kept_after
from lacache.policies.reference import reference_kept
from tests.policies.strategies import ladders


def kept_by(press: LadderPress, num_layers: int, num_tokens: int) -> list[list[int]]:
    """Per layer, the tokens that a press keeps; keys and values are token numbers."""
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
def test_as_the_slow_twin(ladder: tuple[Ladder, int], num_tokens: int, dropped: int) -> None:
    config, num_layers = ladder
    options = asdict(config)
    del options["capacity"]
    share = Fraction(100 - dropped, 100)
    capacity = max(ceil(share * num_tokens), config.smallest_capacity(num_layers))
    config = Ladder(capacity=capacity, **options)
    schedule = config.bind(num_layers)
    _, expected = reference_kept(config, num_layers, schedule.recent, num_tokens, settled=True)
    press = LadderPress(dropped / 100, **options, rerotate=False)
    assert kept_by(press, num_layers, num_tokens) == expected


def test_by_default_the_ladder_of_the_cache() -> None:
    span, overlap = default_span_overlap(12)
    config = Ladder(capacity=50, span=span, overlap=overlap)
    kept = kept_after(config.bind(12), 200)
    kept.settle()
    expected = [kept.by_pattern[pattern] for pattern in config.bind(12).patterns]
    assert kept_by(LadderPress(0.75, rerotate=False), 12, 200) == expected


@pytest.mark.parametrize("ratio", [0, 0.0])
def test_ratio_0_drops_nothing(ratio: float) -> None:
    assert kept_by(LadderPress(ratio), 3, 20) == [list(range(20))] * 3


def test_a_ratio_that_is_set_later_counts() -> None:
    press = LadderPress(0.9, rerotate=False)
    press.compression_ratio = 0.5
    assert kept_by(press, 6, 99) == kept_by(LadderPress(0.5, rerotate=False), 6, 99)
