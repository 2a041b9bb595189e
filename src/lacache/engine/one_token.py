"""Linear layers for one token on CPU: the product of a matrix and a vector (docs/performance.md).

`linear` on one row goes through a library for products of matrices, at two thirds of the speed of
`mv` or less. A compiler's plain loop over the weights is faster still: it reads them once, converts
them on the way and adds up in float32.
"""

from typing import Any, final

import torch
from torch import Tensor, nn


@final
class OneTokenLinear(nn.Module):
    """`nn.Linear` on [1, 1, I], and as ever on anything longer."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias

    def forward(self, states: Tensor) -> Tensor:
        """States [B, Q, I] to [B, Q, O]."""
        if states.numel() != states.shape[-1]:
            return nn.functional.linear(states, self.weight, self.bias)
        vector = states.reshape(-1)
        product = (
            in_memory(dot_rows(self.weight, vector).to(states.dtype))
            if torch.compiler.is_compiling()
            else torch.mv(self.weight, vector)
        )
        product = product.view(*states.shape[:-1], -1)
        return product if self.bias is None else product + self.bias


def use_one_token_linear(module: nn.Module) -> None:
    """Put it in the place of every plain linear layer."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, OneTokenLinear(child))
        else:
            use_one_token_linear(child)


def pays(model: Any, rows: int) -> bool:
    """Whether these products are faster: for one row, on CPU."""
    return rows == 1 and model.device.type == "cpu"


def dot_rows(weight: Tensor, vector: Tensor) -> Tensor:
    """Weight [O, I] times vector [I], multiplied and added up in float32: [O]."""
    return (weight.float() * in_memory(vector.float())).sum(-1)


def in_memory(vector: Tensor) -> Tensor:
    """The vector itself, computed before it is used.

    Else the compiler would compute what leads to it, such as a norm, again for every output.
    """
    return torch.as_strided(vector.contiguous(), vector.shape, (1,))
