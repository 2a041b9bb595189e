"""Compactions with kernels."""

from typing import final

import torch
from torch import Tensor

from lacache.cache.static.mover import Mover, TorchMover
from lacache.engine.cpu.linear import TYPES


@final
class KernelMover(Mover):
    """With the kernels, where each number is read and written once."""

    def __init__(self) -> None:
        self._torch = TorchMover()

    def keep(self, stored: Tensor, slots: Tensor, start: int) -> None:
        """In place, without a copy of all."""
        torch.ops.lacache.keep(stored, slots, start)

    def turn(self, keys: Tensor, cosines: Tensor, sines: Tensor, partners: Tensor) -> Tensor:
        """In one pass, for the types that the kernel takes."""
        if keys.dtype not in TYPES:
            return self._torch.turn(keys, cosines, sines, partners)
        turned: Tensor = torch.ops.lacache.turn(keys, cosines, sines, partners)
        return turned
