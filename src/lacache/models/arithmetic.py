"""Which types a CPU computes fast in, and a model that computes in such a type for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lacache.common.validation import physical_bytes

_HALVES = (torch.bfloat16, torch.float16)


def has_arithmetic(dtype: torch.dtype) -> bool:
    """Whether torch has fast products of a type on this CPU.

    Processors with AVX2 and no AVX512 have no 16-bit arithmetic that torch uses; there it falls
    back to loops that are ten times slower than float32.
    """
    return dtype not in _HALVES or torch.backends.cpu.get_cpu_capability() != "AVX2"


@contextmanager
def fast_arithmetic(model: Any) -> Iterator[None]:
    """Keep 16-bit weights in float32 while the block lasts, where 16-bit products are slow.

    Afterwards the weights are the same, bit for bit. Nothing changes on other devices, on
    processors with 16-bit arithmetic, and where float32 would take more than half of the memory.
    """
    halves = [
        (parameter, parameter.dtype)
        for parameter in model.parameters()
        if type(parameter) is nn.Parameter
        and parameter.device.type == "cpu"
        and not has_arithmetic(parameter.dtype)
    ]
    if 4 * sum(parameter.numel() for parameter, _ in halves) > physical_bytes() // 2:
        halves = []
    try:
        for parameter, _ in halves:
            parameter.data = parameter.data.float()
        yield
    finally:
        for parameter, dtype in halves:
            parameter.data = parameter.data.to(dtype)
