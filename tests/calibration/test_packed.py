"""Gradients through packed weights, against the same weights unpacked."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lacache.calibration.emulation import Emulation
from lacache.calibration.packed import differentiable
from tests.cache.tiny_models import tiny_model

pytest.importorskip("torchao", reason="needs the extra int8")

from torchao import quantization

from lacache.engine.int8 import Int8Linear, quantize_weights

TOKENS = 24


def unpacked(model: Any) -> Any:
    """The model with plain linear layers of the same weights."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Int8Linear):
                weight = child.get_buffer("weight") * child.get_buffer("scale")[:, None]
                linear = nn.Linear(weight.shape[1], weight.shape[0], bias=child.bias is not None)
                linear.weight.data = weight
                if child.bias is not None:
                    linear.bias.data = child.bias.data
                setattr(parent, name, linear)
    return model


def gradient(model: Any, asked: int) -> Tensor:
    ids = torch.randint(2, 60, (TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()
    emulation = Emulation(model, window=4, sinks=1)
    positions = torch.arange(TOKENS - 1 - asked, TOKENS - 1)
    targets = torch.tensor(ids[-asked:])
    return emulation.gradient(ids, positions, targets, emulation.coefficients(0.5))[1]


# The int8 product for a few tokens has no derivative of its own, nor has the kernel for one.
@pytest.mark.parametrize("asked", [1, 3, 20])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_gradients_are_those_of_the_unpacked_weights(family: str, asked: int) -> None:
    model = tiny_model(family, hidden_size=64, intermediate_size=128)
    quantize_weights(model, "int8")
    forwards = [vars(module).get("forward") for module in model.modules()]
    found = gradient(model, asked)
    torch.testing.assert_close(found, gradient(unpacked(model), asked), atol=1e-4, rtol=1e-3)
    assert found.abs().max() > 1e-3
    assert [vars(module).get("forward") for module in model.modules()] == forwards


@pytest.mark.parametrize(
    "config", ["Int8WeightOnly", "Float8WeightOnly", "Int8DynamicActivationInt8Weight"]
)
def test_torchao_weights_have_a_derivative(config: str) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 32)
    linear.bias.data *= 1000
    model = nn.Sequential(linear)
    quantization.quantize_(model, getattr(quantization, f"{config}Config")())
    weight: Any = linear.weight
    states = torch.randn(5, 64, requires_grad=True)
    with differentiable(model):
        product = model(states)
        torch.testing.assert_close(product, linear(states), atol=0, rtol=0)
        product.sum().backward()
    expected = weight.dequantize().sum(0).expand(5, -1)
    torch.testing.assert_close(states.grad, expected, atol=0.02, rtol=1e-3)
