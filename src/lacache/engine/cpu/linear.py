"""Linear layers on a CPU.

For one token, `nn.functional.linear` calls a library for products of matrices: two thirds of the
speed of `torch.mv`, and a third of that of the kernel. For several tokens it is the fastest, but
for 16-bit weights on a processor without 16-bit arithmetic, where float32 is faster.
"""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from lacache.engine.cpu.kernels import TYPES, kernel_product
from lacache.models.arithmetic import has_arithmetic

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(states [..., I], weight [O, I], bias [O] or None) -> [..., O]."""

Product = Callable[[Tensor, Tensor], Tensor]
"""(weight [O, I], vector [I]) -> [O], in the vector's type."""

_BLOCK = 2**20
"""Weights that are converted at once: as many as a processor's own caches hold."""


@final
class CpuLinear(nn.Module):
    """An `nn.Linear` by the fastest product for its number of tokens.

    Args:
        linear: the layer, whose weights are shared.
        product: the product for one token; None takes that for several.
    """

    def __init__(self, linear: nn.Linear, product: Product | None) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self._product = product
        self._linear = linear_for(linear.weight.dtype)

    def forward(self, states: Tensor) -> Tensor:
        """Map hidden states [B, Q, I] to [B, Q, O]."""
        if states.dtype is not self.weight.dtype:
            return widened_linear(states, self.weight, self.bias)
        if self._product is None or states.numel() != states.shape[-1]:
            return self._linear(states, self.weight, self.bias)
        product = self._product(self.weight, states.reshape(-1)).view(*states.shape[:-1], -1)
        return product if self.bias is None else product + self.bias


def use_cpu_linear(module: nn.Module, *, alone: bool, kernels: bool) -> None:
    """Replace every plain linear layer without hooks by a `CpuLinear`.

    Args:
        module: of the engine's private model.
        alone: whether there is one batch slot. With more, one token is computed like several, so
            that a sequence does not depend on its neighbours.
        kernels: whether the kernels are loaded, for layers whose weights they take.
    """
    for name, child in module.named_children():
        if type(child) is nn.Linear and not (child._forward_hooks or child._forward_pre_hooks):
            fits = child.weight.dtype in TYPES and child.weight.is_contiguous()
            product = kernel_product if kernels and fits else torch.mv
            setattr(module, name, CpuLinear(child, product if alone else None))
        else:
            use_cpu_linear(child, alone=alone, kernels=kernels)


def linear_for(dtype: torch.dtype) -> Linear:
    """Return the fastest product of many tokens with weights of a type."""
    return nn.functional.linear if has_arithmetic(dtype) else widened_linear


def widened_linear(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `linear` in float32, block by block of the weights; round once, to the states' type.

    Args:
        states: [..., I].
        weight: [O, I].
        bias: [O], or None.

    Returns:
        [..., O].
    """
    wide = states.float()
    rows = max(1, _BLOCK // weight.shape[1])
    blocks = [nn.functional.linear(wide, block.float()) for block in torch.split(weight, rows)]
    product = torch.cat(blocks, dim=-1) if len(blocks) > 1 else blocks[0]
    return (product if bias is None else product + bias.float()).to(states.dtype)
