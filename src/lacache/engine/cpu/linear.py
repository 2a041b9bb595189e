"""Linear layers for one token: the product of a matrix and a vector.

`linear` on one row goes through a library for products of matrices: on CPU at two thirds of the
speed of `torch.mv`, and at a third of that of the kernel.
"""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

TYPES = (torch.float32, torch.bfloat16)
"""Of weights and states that the kernels take."""

Product = Callable[[Tensor, Tensor], Tensor]
"""(weight [O, I], vector [I]) -> [O], in the vector's type."""


@final
class OneTokenLinear(nn.Module):
    """`nn.Linear` on [1, 1, I], and as ever on anything longer."""

    def __init__(self, linear: nn.Linear, product: Product) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self._product = product

    def forward(self, states: Tensor) -> Tensor:
        """States [B, Q, I] to [B, Q, O]."""
        if states.numel() != states.shape[-1]:
            return nn.functional.linear(states, self.weight, self.bias)
        product = self._product(self.weight, states.reshape(-1)).view(*states.shape[:-1], -1)
        return product if self.bias is None else product + self.bias


def use_one_token_linear(module: nn.Module, *, kernels: bool) -> None:
    """Put it in the place of every plain linear layer.

    Args:
        module: of the engine's own model.
        kernels: whether they are loaded, for the layers whose weights they take.
    """
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            fits = child.weight.dtype in TYPES and child.weight.is_contiguous()
            product = kernel_product if kernels and fits else torch.mv
            setattr(module, name, OneTokenLinear(child, product))
        else:
            use_one_token_linear(child, kernels=kernels)


def kernel_product(weight: Tensor, vector: Tensor) -> Tensor:
    """Weight [O, I], in int8 too, times vector [I]; multiplied and added up in float32."""
    product: Tensor = torch.ops.lacache.product(weight, vector.float())
    return product.to(vector.dtype)
