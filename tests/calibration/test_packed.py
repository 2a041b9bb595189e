"""Gradients through packed weights, against the same weights unpacked."""

from typing import Any

import pytest
import torch
from torch import nn

from lacache.calibration.packed import differentiable

pytest.importorskip("torchao", reason="needs the extra int8")

from torchao import quantization


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


class Wrapper(nn.Module):
    """Another linear layer in its place, as adapters have it: `bias` cannot be set."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.in_features = base.in_features

    @property
    def weight(self) -> Any:
        return self.base.weight

    @property
    def bias(self) -> Any:
        return self.base.bias

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = self.base(states)
        return product


def test_wrappers_of_layers_have_a_derivative() -> None:
    linear = nn.Linear(64, 32)
    quantization.quantize_(nn.Sequential(linear), quantization.Int8WeightOnlyConfig())
    wrapper = Wrapper(linear)
    states = torch.randn(5, 64, requires_grad=True)
    with differentiable(wrapper):
        wrapper(states).sum().backward()
    weight: Any = linear.weight
    expected = weight.dequantize().sum(0).expand(5, -1)
    torch.testing.assert_close(states.grad, expected, atol=0.02, rtol=1e-3)
    assert "forward" not in vars(linear)
