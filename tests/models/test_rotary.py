"""Turning keys alone against the model's function given queries and keys."""

import pytest
import torch

from lacache.models.model_info import model_info
from tests.cache.tiny_models import FAMILIES, tiny_model
from tests.models.rotary_functions import MODULES, model_module, random_rotation


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(("num_heads", "num_tokens"), [(3, 5), (1, 1), (2, 0)])
def test_keys_rotate_as_beside_queries(name: str, num_heads: int, num_tokens: int) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    keys = torch.randn(1, num_heads, num_tokens, 8, generator=generator)
    rotation = random_rotation(name)
    tables = rotation.tables(3 - torch.arange(num_tokens))
    queries, expected = model_module(name).apply_rotary_pos_emb(keys, keys, *tables)
    assert torch.equal(queries, expected)
    found = rotation.rotate(keys, tables)
    assert torch.equal(found, expected)
    assert num_tokens == 0 or not torch.equal(found, keys)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_shift_changes_nothing(family: str) -> None:
    for layer in model_info(tiny_model(family)).growing:
        if layer.rotation is None:
            continue
        keys = torch.randn(1, layer.num_heads, 4, layer.key_size)
        tables = layer.rotation.tables(torch.zeros(4, dtype=torch.long))
        assert torch.equal(layer.rotation.rotate(keys, tables), keys)
