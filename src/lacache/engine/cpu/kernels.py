"""The operators of kernels.cpp: products and attention of one token, and compactions.

`build.load_kernels` defines them.
"""

from typing import Any, final

import torch
from torch import Tensor, nn

from lacache.cache.static.attention import Attend
from lacache.cache.static.kv_heads import CompactionOps, TorchCompactionOps

TYPES = (torch.float32, torch.bfloat16)
"""Types of weights, keys and values that the kernels take."""


def kernel_product(weight: Tensor, vector: Tensor) -> Tensor:
    """Multiply a weight [O, I], in int8 too, and a vector [I]; add up in float32.

    Returns:
        [O], in the vector's type.
    """
    product: Tensor = torch.ops.lacache.product(weight, vector.float())
    return product.to(vector.dtype)


def for_one_token(attend: Attend) -> Attend:
    """Return attention of one token by the kernel, which reads only the slots in use.

    Args:
        attend: torch's fused attention or an equivalent, for what the kernel does not support.
    """

    def attend_one(
        module: nn.Module,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        visible: Tensor | None,
        options: dict[str, Any],
    ) -> Tensor:
        is_supported = (
            visible is not None
            and options.get("softcap") is None
            and options.get("s_aux") is None
            and query.shape[2] == 1
            and keys.dtype in TYPES
            and keys.dtype == values.dtype
            and keys.is_contiguous()
            and values.is_contiguous()
        )
        if not is_supported:
            return attend(module, query, keys, values, visible, options)
        scale = options.get("scaling") or query.shape[-1] ** -0.5
        scaled = (query.float() * scale).contiguous()
        output: Tensor = torch.ops.lacache.attend(scaled, keys, values, visible)
        return output.to(query.dtype)

    return attend_one


@final
class KernelCompactionOps(CompactionOps):
    """The operations of a compaction by kernels, which read and write each number once."""

    def __init__(self) -> None:
        self._torch = TorchCompactionOps()

    def gather(self, stored: Tensor, slots: Tensor, start: int) -> None:
        """Move the surviving slots in place, without a copy."""
        torch.ops.lacache.gather(stored, slots, start)

    def rotate(self, keys: Tensor, cosines: Tensor, sines: Tensor, partners: Tensor) -> Tensor:
        """Rotate in one pass; other types than the kernel takes use torch's operators."""
        if keys.dtype not in TYPES:
            return self._torch.rotate(keys, cosines, sines, partners)
        rotated: Tensor = torch.ops.lacache.rotate(keys, cosines, sines, partners)
        return rotated
