"""Linear layers on a CPU.

One token is the product of a matrix and a vector: `linear` takes it through a library for products
of matrices, at two thirds of the speed of `torch.mv`, and at a third of that of the kernel. Several
are one of matrices, in float32 where the processor has no arithmetic for the weights' type.
"""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from lacache.engine.cpu.arithmetic import linear_for

TYPES = (torch.float32, torch.bfloat16)
"""Of weights and states that the kernels take."""

Product = Callable[[Tensor, Tensor], Tensor]
"""(weight [O, I], vector [I]) -> [O], in the vector's type."""


@final
class CpuLinear(nn.Module):
    """An `nn.Linear`, in the quickest way for what it is given."""

    def __init__(self, linear: nn.Linear, product: Product | None) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self._product = product
        self._linear = linear_for(linear.weight.dtype)

    def forward(self, states: Tensor) -> Tensor:
        """States [B, Q, I] to [B, Q, O]."""
        if self._product is None or states.numel() != states.shape[-1]:
            return self._linear(states, self.weight, self.bias)
        product = self._product(self.weight, states.reshape(-1)).view(*states.shape[:-1], -1)
        return product if self.bias is None else product + self.bias


def use_cpu_linear(module: nn.Module, *, alone: bool, kernels: bool) -> None:
    """Put it in the place of every plain linear layer without hooks.

    Args:
        module: of the engine's own model.
        alone: whether one token comes as a vector; else as any other number of tokens, so that a
            row in a batch is computed as its neighbours are.
        kernels: whether they are loaded, for the layers whose weights they take.
    """
    for name, child in module.named_children():
        if type(child) is nn.Linear and not (child._forward_hooks or child._forward_pre_hooks):
            fits = child.weight.dtype in TYPES and child.weight.is_contiguous()
            product = kernel_product if kernels and fits else torch.mv
            setattr(module, name, CpuLinear(child, product if alone else None))
        else:
            use_cpu_linear(child, alone=alone, kernels=kernels)


def kernel_product(weight: Tensor, vector: Tensor) -> Tensor:
    """Weight [O, I], in int8 too, times vector [I]; multiplied and added up in float32."""
    product: Tensor = torch.ops.lacache.product(weight, vector.float())
    return product.to(vector.dtype)
