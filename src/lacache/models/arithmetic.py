"""Types that a CPU computes fast in, and computing in such a type for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lacache.common.validation import physical_bytes

_HALVES = (torch.bfloat16, torch.float16)


def has_arithmetic(dtype: torch.dtype) -> bool:
    """Check whether torch has fast products of a type on this CPU.

    On processors with AVX2 and no AVX512, torch computes 16-bit products with loops that are ten
    times slower than float32.
    """
    return dtype not in _HALVES or torch.backends.cpu.get_cpu_capability() != "AVX2"


@contextmanager
def fast_arithmetic(model: Any) -> Iterator[None]:
    """Replace 16-bit weights by float32 while the block lasts, where 16-bit products are slow.

    Afterwards the weights have their original storage, which other models may share. Nothing
    changes on other devices, on processors with 16-bit arithmetic, and where the weights in both
    types would take more than half of the memory.
    """
    halves = [
        (parameter, parameter.data)
        for parameter in model.parameters()
        if type(parameter) is nn.Parameter
        and parameter.device.type == "cpu"
        and not has_arithmetic(parameter.dtype)
    ]
    if sum((4 + data.itemsize) * data.numel() for _, data in halves) > physical_bytes() // 2:
        halves = []
    try:
        for parameter, data in halves:
            parameter.data = data.float()
        yield
    finally:
        for parameter, data in halves:
            parameter.data = data
