"""Which types a processor computes with, and what to do where it does not."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(states [..., I], weight [O, I], bias [O] or None) -> [..., O]."""

_HALVES = (torch.bfloat16, torch.float16)
_BLOCK = 2**20
"""Weights that are widened at once: as many as a processor's own caches hold."""


def has_arithmetic(dtype: torch.dtype) -> bool:
    """Whether torch's products on this CPU take a type as it is.

    Processors with AVX2 and no AVX512 have no 16-bit arithmetic that torch uses; there it falls
    back to loops that are ten times slower than float32.
    """
    return dtype not in _HALVES or torch.backends.cpu.get_cpu_capability() != "AVX2"


def linear_for(dtype: torch.dtype) -> Linear:
    """The quickest for many tokens and weights of a type."""
    return nn.functional.linear if has_arithmetic(dtype) else widened_linear


def widened_linear(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`linear` in float32, block by block of the weights, rounded once to the type of `states`.

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
