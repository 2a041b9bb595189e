"""Linear layers for one token: torch's product of matrix and vector instead of two matrices.

On CPU, `linear` on one row goes through a library for matrix products and reaches about two thirds
of what `mv` does (docs/performance.md). The compiler would take `mv` apart into a loop of its own,
which is slower again, so the product is an operator that it does not see into.
"""

from typing import Any, final

import torch
from torch import Tensor, nn


@torch.library.custom_op("lacache::matvec", mutates_args=())
def matvec(weight: Tensor, vector: Tensor) -> Tensor:
    """weight [O, I] times vector [I]: [O]."""
    return torch.mv(weight, vector)


@matvec.register_fake
def _(weight: Tensor, vector: Tensor) -> Tensor:
    return vector.new_empty(weight.shape[0])


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
        product: Tensor = matvec(self.weight, states.reshape(-1))
        product = product.view(*states.shape[:-1], -1)
        return product if self.bias is None else product + self.bias


def use_matvec(module: nn.Module) -> None:
    """Put `OneTokenLinear` in the place of every plain linear layer."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, OneTokenLinear(child))
        else:
            use_matvec(child)


def pays(model: Any, rows: int) -> bool:
    """Whether these products are faster: for one row, on CPU."""
    return rows == 1 and model.device.type == "cpu"
