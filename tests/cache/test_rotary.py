"""Turning keys alone against the model's function given queries and keys."""

from importlib import import_module

import pytest
import torch
from torch import Tensor, nn

from lacache.cache.facts import model_facts
from lacache.cache.rotary import Rotation
from tests.cache.tiny_models import FAMILIES, tiny_model

MODULES = (
    "cohere",
    "ernie4_5",
    "gemma3",
    "glm",
    "gpt_neox",
    "gpt_oss",
    "helium",
    "llama",
    "nemotron",
    "olmo",
    "olmo2",
    "phi3",
)
"""Models whose functions differ, some in turning neighbours or only leading dimensions."""


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(("num_heads", "num_tokens"), [(3, 5), (1, 1), (2, 0)])
def test_keys_turn_as_beside_queries(name: str, num_heads: int, num_tokens: int) -> None:
    module = import_module(f"transformers.models.{name}.modeling_{name}")
    # gpt-oss has tables of half the width.
    width = 4 if name == "gpt_oss" else 8

    class Tables(nn.Module):
        """In place of the model's own: its cosines and sines are random."""

        def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
            angles = position_ids[..., None] * torch.linspace(0.1, 1.0, width)
            return angles.cos(), angles.sin()

    Tables.__module__ = module.__name__
    generator = torch.Generator().manual_seed(num_tokens)
    keys = torch.randn(1, num_heads, num_tokens, 8, generator=generator)
    rotation = Rotation(Tables(), None, leading=False)
    tables = rotation.tables(3 - torch.arange(num_tokens))
    queries, expected = module.apply_rotary_pos_emb(keys, keys, *tables)
    assert torch.equal(queries, expected)
    found = rotation.rotate(keys, tables)
    assert torch.equal(found, expected)
    assert num_tokens == 0 or not torch.equal(found, keys)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_shift_changes_nothing(family: str) -> None:
    for layer in model_facts(tiny_model(family)).growing:
        if layer.rotation is None:
            continue
        keys = torch.randn(1, layer.num_heads, 4, layer.key_size)
        tables = layer.rotation.tables(torch.zeros(4, dtype=torch.long))
        assert torch.equal(layer.rotation.rotate(keys, tables), keys)
