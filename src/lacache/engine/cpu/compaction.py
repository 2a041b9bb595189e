"""The operations of a compaction, with CPU kernels."""

from typing import final

import torch
from torch import Tensor

from lacache.cache.static.kv_heads import CompactionOps, TorchCompactionOps
from lacache.engine.cpu.linear import TYPES


@final
class KernelCompactionOps(CompactionOps):
    """The operations with CPU kernels, which read and write each number once."""

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
