"""Centers of keys against a mean over positions, one by one."""

from typing import Any

import pytest
import torch
from torch import Tensor

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


@pytest.mark.parametrize("family", ["qwen2", "gpt-oss", "glm"])
def test_every_layer_with_a_bias_has_a_center(family: str) -> None:
    model = tiny_model(family)
    biases = [name for name, _ in model.named_parameters() if name.endswith("k_proj.bias")]
    info = model_info(model)
    assert biases
    assert all(layer.key_center is not None for layer in info.growing)
    assert not any(module._forward_hooks for module in model.modules())


def test_keys_that_are_normalised_have_no_center() -> None:
    model = tiny_model("qwen3", attention_bias=True)
    assert model.model.layers[0].self_attn.k_proj.bias is not None
    assert all(layer.key_center is None for layer in model_info(model).growing)


def test_a_layer_without_positions_keeps_its_whole_bias() -> None:
    bias, keys = torch.randn(8), torch.randn(1, 2, 3, 4)
    output = keys.transpose(1, 2).reshape(1, 3, 8)
    center = find_key_center((bias, output), None, keys, 64)
    assert center is not None
    assert torch.equal(center, bias.view(2, 4))
    assert find_key_center((bias, 2 * output), None, keys, 64) is None
    assert find_key_center((bias, output[:, :2]), None, keys, 64) is None
    assert find_key_center(None, None, keys, 64) is None


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
    assert 0 < error.mean() < most
