"""Rotary tables for every distance that a key can move, computed once."""

from typing import final

import torch
from torch import Tensor

from lacache.cache.rotary import Rotation, Tables


@final
class Turns:
    """Moves keys by whole numbers of positions.

    Args:
        rotation: the model's.
        reach: the furthest that keys move as a rule; further moves are computed when they come.
    """

    def __init__(self, rotation: Rotation, reach: int, device: torch.device) -> None:
        self._rotation = rotation
        self._reach = reach
        self._device = device
        cos, sin = rotation.tables(torch.arange(-reach, reach + 1, device=device))
        self._cos, self._sin = cos[0], sin[0]

    def tables(self, shifts: Tensor) -> Tables:
        """Tables [1, N, d] for `shifts` [N] positions, on the CPU."""
        if len(shifts) and int(shifts.abs().max()) > self._reach:
            return self._rotation.tables(shifts.to(self._device))
        rows = (shifts + self._reach).to(self._device)
        return self._cos[rows][None], self._sin[rows][None]

    def rotate(self, keys: Tensor, tables: Tables) -> Tensor:
        """Keys [1, H, N, D] moved: one rounding to their own type."""
        return self._rotation.rotate(keys, tables)
