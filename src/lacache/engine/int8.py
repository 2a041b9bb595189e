"""Weights in int8 with a scale for each output: half the memory of bfloat16, and less to read.

Quantized by torchao (`Int8WeightOnlyConfig`). Its product converts all weights first, for every
token again; on CPU that costs more than is saved, so the product there is another
(docs/performance.md). It is faster than bfloat16 for up to about four tokens at once; with more,
int8 saves memory alone.
"""

from typing import Any, final

import torch
from torch import Tensor, nn

from lacache.common.packages import quiet_imports
from lacache.common.validation import validate_weights
from lacache.engine.cpu.arithmetic import linear_for
from lacache.engine.cpu.linear import kernel_product

_FEW = 16
"""Up to so many tokens torch's product with int8 is faster than one that converts first."""

_WHOLE = 64
"""That product reads so many bfloat16 numbers at a time, or fewer, and beyond the last ones too."""


def quantize_weights(model: nn.Module, weights: str, *, kernels: bool = False) -> None:
    """Put int8 weights in the place of those of every linear layer; the old ones stay as they are.

    Args:
        model: a private one, whose modules are nobody else's.
        weights: "int8".
        kernels: whether those for one token are loaded.

    Raises:
        ConfigError: another name.
        MissingExtraError: torchao is not installed.
    """
    validate_weights(weights)
    with quiet_imports():
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

    # Its settings for inductor would be set for the whole process.
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
        self._kernels = kernels
        self._linear = linear_for(scale.dtype)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = bias

    def forward(self, states: Tensor) -> Tensor:
        """States [..., I] to [..., O]."""
        weight, scale = self.get_buffer("weight"), self.get_buffer("scale")
        rows = states.reshape(-1, states.shape[-1])
        if len(rows) == 1 and self._kernels:
            product = (kernel_product(weight, rows[0].float()) * scale.float()).to(states.dtype)
        elif len(rows) <= _FEW and weight.shape[1] % _WHOLE == 0:
            product = torch._weight_int8pack_mm(rows, weight, scale)
        else:
            product = self._linear(rows, weight * scale[:, None], None)
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
