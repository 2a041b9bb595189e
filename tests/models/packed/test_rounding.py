"""Rounding to 4 and 8 bits: as near as the step, and exact where it can be."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lacache.models import load_model
from lacache.models.packed.folder import round_model
from lacache.models.packed.layers import PackedEmbedding, PackedLinear
from lacache.models.packed.rounding import to_int4, to_int8
from lacache.models.packed.weight import PackedWeight
from tests.cache.tiny_models import tiny_model


def numbers(seed: int = 0) -> Tensor:
    return torch.randn(20, 64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("to_groups", "most"), [(to_int4, 0.5 / 15), (to_int8, 0.25 / 127)])
def test_errors_are_at_most_half_a_step(to_groups: object, most: float) -> None:
    weight = numbers()
    groups = to_groups(weight)  # type: ignore[operator]
    error = (PackedWeight.pack(groups).unpack() - weight).unflatten(-1, (-1, 32)).abs().amax(-1)
    spread = weight.unflatten(-1, (-1, 32))
    span = 2 * spread.abs().amax(-1) if to_groups is to_int8 else spread.amax(-1) - spread.amin(-1)
    # Scales and offsets are rounded too, to 11 bits.
    assert (error <= most * span + 2e-3 * spread.abs().amax(-1)).all()


def test_16_levels_are_exact() -> None:
    levels = torch.randint(0, 16, (20, 64), generator=torch.Generator().manual_seed(0))
    levels[:, ::32], levels[:, 1::32] = 0, 15
    weight = levels * 0.25 - 2
    groups = to_int4(weight)
    assert groups is not None
    assert torch.equal(PackedWeight.pack(groups).unpack(), weight)
    zeros = to_int4(torch.zeros(16, 32))
    assert zeros is not None
    assert torch.equal(PackedWeight.pack(zeros).unpack(), torch.zeros(16, 32))


def test_other_widths_stay_as_they_are() -> None:
    assert to_int4(torch.zeros(16, 48)) is None
    assert to_int8(torch.zeros(16, 48)) is None
    model = tiny_model("llama")
    model.model.layers[0].mlp.down_proj = nn.Linear(48, 32)
    round_model(model)
    assert type(model.model.layers[0].mlp.down_proj) is nn.Linear


def test_a_model_rounds_its_ends_to_8_bits(tiny_directory: Path) -> None:
    model = tiny_model("llama")
    ids = torch.arange(2, 40)[None]
    with torch.no_grad():
        expected = model(ids).logits
        round_model(model)
        found = model(ids).logits
    assert isinstance(model.lm_head, PackedLinear)
    assert isinstance(model.model.embed_tokens, PackedEmbedding)
    assert model.lm_head.packed.zero == model.model.embed_tokens.packed.zero == 128
    assert model.model.layers[0].self_attn.q_proj.packed.offsets is not None
    assert not torch.equal(found, expected)
    same = nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0)
    assert same > 0.7
    loaded = load_model(tiny_directory, weights="int4", progress=False)
    assert loaded.model.dtype == torch.bfloat16
