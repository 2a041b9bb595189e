"""Rotary tables made at once against those of the model's own rotation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lacache.cache.facts import model_facts
from lacache.cache.rotary import Rotation
from lacache.cache.static.turns import Turns
from tests.cache.tiny_models import tiny_model

REACH = 12
CPU = torch.device("cpu")


def rotations(family: str) -> list[Rotation]:
    growing = model_facts(tiny_model(family)).growing
    return [layer.rotation for layer in growing if layer.rotation is not None]


@pytest.mark.parametrize("family", ["llama", "llama-yarn", "phi3", "gpt-neox", "gemma3"])
def test_every_shift_in_reach_and_the_first_beyond_it(family: str) -> None:
    rotation = rotations(family)[0]
    turns = Turns(rotation, REACH, CPU)
    for reach in (REACH, REACH + 1, 5000):
        shifts = torch.tensor([-reach, *range(-REACH, REACH + 1), reach])
        for found, expected in zip(turns.tables(shifts), rotation.tables(shifts), strict=True):
            assert torch.equal(found, expected)


@given(st.lists(st.integers(-2 * REACH, 2 * REACH), max_size=8), st.integers(0, 5))
@settings(max_examples=50)
def test_keys_turn_as_by_the_model(shifts: list[int], seed: int) -> None:
    rotation = LLAMA[0]
    moved = torch.tensor(shifts, dtype=torch.long)
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(1, 2, len(shifts), 8, generator=generator).bfloat16()
    turns = Turns(rotation, REACH, CPU)
    found = turns.rotate(keys, turns.tables(moved))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, rotation.rotate(keys, rotation.tables(moved)))


LLAMA = rotations("llama")
