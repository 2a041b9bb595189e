"""Derivatives through linear layers with torchao's packed weights, whose kernels have none."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

_ROWS = 512
"""Inputs for which weights are unpacked at once."""


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Give packed linear layers a derivative by their input while the block lasts.

    The derivative of a layer with weight [O, I] maps gradients [..., O] to [..., I].
    """
    with ExitStack() as stack:
        for module in model.modules():
            if _is_packed(module):
                own = vars(module).get("forward")
                stack.callback(restore_forward, module, own)
                module.forward = partial(_apply, module, module.forward)
        yield


def restore_forward(module: Any, own: Any) -> None:
    """Undo that a forward was set on one module; `own` is None if it had none of its own."""
    if own is not None:
        module.forward = own
    elif "forward" in vars(module):
        del module.forward


def _apply(module: nn.Module, forward: Callable[[Tensor], Tensor], states: Tensor) -> Any:
    return _Packed.apply(states, module, forward)  # type: ignore[no-untyped-call]


def _is_packed(module: nn.Module) -> bool:
    """Check whether a module is a linear layer whose weight consists of several tensors."""
    return isinstance(module, nn.Linear) and hasattr(module.weight, "__tensor_flatten__")


@final
class _Packed(torch.autograd.Function):
    """A linear layer as it computes, with the derivative of its unpacked weight [O, I]."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, module: nn.Linear, forward: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Map hidden states [..., I] to [..., O]."""
        ctx.module, ctx.forward = module, forward
        return forward(states)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Map gradients [..., O] to [..., I]."""
        (gradient,) = gradients
        module, columns = ctx.module, []
        bias = module.bias
        # The layer's outputs for unit vectors [I, I] are its weight, however that is packed.
        unit = torch.eye(module.in_features, dtype=gradient.dtype, device=gradient.device)
        # A large bias would leave few digits of the weight.
        module.bias = None
        try:
            for rows in torch.split(unit, _ROWS):
                columns.append(gradient @ ctx.forward(rows).T)
        finally:
            module.bias = bias
        return torch.cat(columns, -1), None, None
