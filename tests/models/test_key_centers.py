"""Centers of keys against a mean over positions, one by one."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lacache.engine.runner import Runner
from lacache.models.key_centers import find_key_center
from lacache.models.model_info import model_info
from lacache.policies import Streaming
from tests.cache.tiny_models import YARN, biased_model, random_ids, tiny_model
from tests.policies.sized import bind_to


def slow_center(model: Any, depth: int, length: int) -> Tensor:
    layer = model_info(model).growing[depth]
    bias = model.model.layers[depth].self_attn.k_proj.bias.detach().view(1, 2, 1, 8)
    everywhere = bias.float().expand(-1, -1, length, -1)
    tables = layer.rotation.tables(torch.arange(length), scaled=True)
    return layer.rotation.rotate(everywhere, tables).double().mean(dim=2)[0]


@pytest.mark.parametrize("changes", [{}, {"rope_parameters": YARN}], ids=["default", "yarn"])
def test_a_center_is_the_mean_of_the_bias_over_all_positions(changes: dict[str, Any]) -> None:
    model = biased_model(max_position_embeddings=600, **changes)
    for depth, layer in enumerate(model_info(model).growing):
        assert layer.key_center is not None
        slow = slow_center(model, depth, 512)
        torch.testing.assert_close(layer.key_center.double(), slow, rtol=1e-3, atol=1e-4)
        # What rotates fast averages out.
        assert layer.key_center[:, 0].abs().max() < 0.1


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt-neox"])
def test_keys_without_a_bias_have_no_center(family: str) -> None:
    assert all(layer.key_center is None for layer in model_info(tiny_model(family)).growing)


def test_a_bias_that_keys_are_not_near_is_no_center() -> None:
    model = biased_model()
    decoder = model.model
    far = -decoder.layers[1].self_attn.k_proj.bias.detach().view(1, 2, 1, 8)
    rotation = model_info(model).growing[1].rotation
    assert find_key_center(decoder, 1, rotation, -far, 64) is not None
    assert find_key_center(decoder, 1, rotation, far, 64) is None
    assert find_key_center(decoder, 1, rotation, far[:, :1], 64) is None


def test_a_layer_without_positions_keeps_its_whole_bias() -> None:
    decoder = nn.Module()
    decoder.layers = nn.ModuleList([nn.Module()])
    decoder.layers[0].self_attn = nn.Module()
    decoder.layers[0].self_attn.k_proj = nn.Linear(3, 8)
    bias = decoder.layers[0].self_attn.k_proj.bias.detach().view(1, 2, 1, 4)
    center = find_key_center(decoder, 0, None, bias, 64)
    assert center is not None
    assert torch.equal(center, bias[0, :, 0])


@pytest.mark.parametrize(("name", "most"), [("int8", 0.02), ("int4", 0.3)])
def test_large_biases_cost_nothing_in_the_engine(name: str, most: float) -> None:
    """With outliers in every key, in groups that renumber and rotate too."""
    ids = random_ids(90)[0].tolist()

    def run(model: Any, kv_dtype: str | None) -> Tensor:
        runner = Runner(model, bind_to(model, (24, Streaming(evict_batch=3))), 2, None, kv_dtype)
        return torch.stack([runner.decode([token] * 2, [1])[1] for token in ids])

    model = biased_model(max_position_embeddings=64)
    exact, coarse = run(model, None), run(model, name)
    error = (coarse - exact).norm(dim=-1) / exact.norm(dim=-1)
    print(name, error.mean())
    assert 0 < error.mean() < most
