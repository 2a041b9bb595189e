"""Linear layers with int8 weights and a scale for each output: half the memory of bfloat16.

torchao quantizes them (`Int8WeightOnlyConfig`). Its product converts all weights for each forward,
which costs more on CPU than int8 saves; so the product on CPU is another (docs/performance.md). It
is faster than bfloat16 for up to about four tokens at once; with more, int8 only saves memory.
"""

from typing import Any, final

import torch
from torch import Tensor, nn

from lacache.common.packages import quiet_imports
from lacache.common.validation import validate_weights
from lacache.engine.cpu.kernels import kernel_product
from lacache.engine.cpu.linear import linear_for

_FEW = 16
"""Most tokens for which torch's int8 product is faster than converting the weights first."""

_WHOLE = 64
"""Inputs of that product must be a multiple: it reads up to so many bfloat16 numbers at a time."""


def quantize_weights(model: nn.Module, weights: str, *, kernels: bool = False) -> None:
    """Replace the weights of every linear layer by int8 weights; the old tensors are unchanged.

    Args:
        model: a private model, see `private_model`.
        weights: "int8".
        kernels: whether the CPU kernels are loaded.

    Raises:
        ConfigError: weights is not "int8".
        MissingExtraError: torchao is not installed.
    """
    validate_weights(weights)
    with quiet_imports():
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

    # Its inductor settings would change the whole process.
    quantize_(model, Int8WeightOnlyConfig(version=2, set_inductor_config=False))
    if next(model.parameters()).device.type == "cpu":
        _use_int8_linear(model, kernels)


@final
class Int8Linear(nn.Module):
    """A linear layer with weights [O, I] in int8, scales [O] in the model's type, on CPU."""

    def __init__(
        self, weight: Tensor, scale: Tensor, bias: Tensor | None, *, kernels: bool = False
    ) -> None:
        super().__init__()
        self.in_features = weight.shape[1]
        self._kernels = kernels
        self._linear = linear_for(scale.dtype)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = bias

    def forward(self, states: Tensor) -> Tensor:
        """Map hidden states [..., I] to [..., O]."""
        weight, scale = self.get_buffer("weight"), self.get_buffer("scale")
        vectors = states.reshape(-1, states.shape[-1])
        if len(vectors) == 1 and self._kernels:
            product = (kernel_product(weight, vectors[0].float()) * scale.float()).to(states.dtype)
        elif len(vectors) <= _FEW and weight.shape[1] % _WHOLE == 0:
            product = torch._weight_int8pack_mm(vectors, weight, scale)
        else:
            product = self._linear(vectors, weight * scale[:, None], None)
        product = product.view(*states.shape[:-1], -1)
        return product if self.bias is None else product + self.bias


def _use_int8_linear(module: nn.Module, kernels: bool) -> None:
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            quantized: Any = child.weight
            scale = quantized.scale.flatten().to(quantized.dtype)
            layer = Int8Linear(quantized.qdata.contiguous(), scale, child.bias, kernels=kernels)
            setattr(module, name, layer)
        else:
            _use_int8_linear(child, kernels)
