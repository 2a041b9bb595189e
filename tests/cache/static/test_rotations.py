"""Tables as wide as a key against the model's own rotary function."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lacache.cache.static.compaction_ops import TorchCompactionOps
from lacache.cache.static.kv_heads import Rotations
from lacache.errors import UnsupportedModelError
from lacache.models.model_info import GrowingLayer, model_info
from lacache.models.rotary import RotaryTables, Rotation
from tests.cache.tiny_models import FAMILIES, tiny_model
from tests.models.rotary_functions import MODULES, SIZE, random_rotation

REACH = 12
CPU = torch.device("cpu")


def rotated_layers(family: str) -> list[GrowingLayer]:
    return [x for x in model_info(tiny_model(family)).growing if x.rotation is not None]


def rotated(keys: Tensor, rotations: Rotations, shifts: Tensor) -> Tensor:
    return TorchCompactionOps().rotate(keys, *rotations.tables(shifts), rotations.partners)


@pytest.mark.parametrize("family", [family for family in FAMILIES if rotated_layers(family)])
def test_every_shift_in_reach_and_the_first_beyond_it(family: str) -> None:
    layer = rotated_layers(family)[0]
    rotation, size = layer.rotation, layer.key_size
    assert rotation is not None
    rotations = Rotations(rotation, size, REACH, CPU)
    for reach in (REACH, REACH + 1, 5000):
        shifts = torch.tensor([-reach, *range(-REACH, REACH + 1), reach])
        generator = torch.Generator().manual_seed(reach)
        keys = torch.randn(1, 2, len(shifts), size, generator=generator)
        expected = rotation.rotate(keys, rotation.tables(shifts))
        assert torch.equal(rotated(keys, rotations, shifts), expected)


LLAMA = rotated_layers("llama")[0].rotation


@given(st.lists(st.integers(-2 * REACH, 2 * REACH), max_size=8), st.integers(0, 5))
@settings(max_examples=50)
def test_keys_are_rotated_as_by_the_model(shifts: list[int], seed: int) -> None:
    assert LLAMA is not None
    moved = torch.tensor(shifts, dtype=torch.long)
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(1, 2, len(shifts), 8, generator=generator).bfloat16()
    found = rotated(keys, Rotations(LLAMA, 8, REACH, CPU), moved)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, LLAMA.rotate(keys, LLAMA.tables(moved)))


@pytest.mark.parametrize("name", MODULES)
def test_whatever_the_model_takes_for_pairs(name: str) -> None:
    rotation = random_rotation(name)
    rotations = Rotations(rotation, SIZE, REACH, CPU)
    shifts = torch.tensor([0, -3, 8, 40])
    keys = torch.randn(1, 2, len(shifts), SIZE)
    expected = rotation.rotate(keys, rotation.tables(shifts))
    assert torch.equal(rotated(keys, rotations, shifts), expected)


class Made(torch.nn.Module):
    """A rotary embedding; the function is looked up beside it."""

    def forward(self, x: Tensor, position_ids: Tensor) -> RotaryTables:
        angles = position_ids[..., None] * torch.linspace(0.1, 1.0, SIZE)
        return angles.cos(), angles.sin()


def backwards(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The order of the numbers changes."""
    return (x * cos + x.roll(1, -1) * sin).flip(-1)


def round_and_round(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each has a partner that has another."""
    return x * cos + x.roll(1, -1) * sin


def all_to_all(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """All are partners of each."""
    return x * cos + x.sum(-1, keepdim=True) * sin


@pytest.mark.parametrize("function", [backwards, round_and_round, all_to_all])
def test_numbers_that_are_not_rotated_in_pairs_are_refused(function: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(globals(), "apply_rotary_pos_emb", function)
    rotation = Rotation(Made(), None, leading=False)
    with pytest.raises(
        UnsupportedModelError, match=r"the 8 numbers of a key in pairs.*use LaCache"
    ):
        Rotations(rotation, SIZE, REACH, CPU)
