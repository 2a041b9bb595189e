"""Rotary tables for every distance that a key can move, computed once."""

from copy import deepcopy
from typing import final

import torch
from torch import Tensor

from lacache.errors import UnsupportedModelError
from lacache.models.rotary import RotaryTables, Rotation


@final
class Rotations:
    """Cosines and sines that rotate keys by whole numbers of positions.

    Models differ in which numbers of a key are rotated, in how these are paired, and in the shape
    of their tables. The model's own rotary function is probed once, and the result stored in
    tables as wide as a key: a number becomes its cosine times itself plus its sine times its
    partner.

    Args:
        rotation: the model's rotary embedding.
        size: D of a key.
        reach: the largest distance to tabulate; larger ones are computed on demand.
        device: where the keys are.

    Raises:
        UnsupportedModelError: the model does not rotate the numbers of a key in pairs.
    """

    def __init__(self, rotation: Rotation, size: int, reach: int, device: torch.device) -> None:
        # The owner may cast the model, which rounds frequencies.
        self._rotation = deepcopy(rotation)
        self._size = size
        self._reach = reach
        self._device = device
        self.partners = self._find_partners()
        """For each of the D numbers of a key, the index of its partner [D]."""
        self._cosines, self._sines = self._compute(torch.arange(-reach, reach + 1, device=device))

    def tables(self, shifts: Tensor) -> RotaryTables:
        """Return cosines and signed sines, each [N, D], for `shifts` [N] on the CPU."""
        if len(shifts) and int(shifts.abs().max()) > self._reach:
            return self._compute(shifts.to(self._device))
        indices = (shifts + self._reach).to(self._device)
        return self._cosines[indices], self._sines[indices]

    def _compute(self, shifts: Tensor) -> RotaryTables:
        cos, sin = self._rotation.tables(shifts)
        ones = torch.ones(1, 1, len(shifts), self._size, device=self._device)
        cosines = self._rotation.rotate(ones, (cos, torch.zeros_like(sin)))
        # Numbers that are not rotated pass through, whatever the tables contain.
        passed = self._rotation.rotate(ones, (torch.zeros_like(cos), torch.zeros_like(sin)))
        sines = self._rotation.rotate(ones, (torch.zeros_like(cos), sin)) - passed
        return cosines[0, 0].contiguous(), sines[0, 0].contiguous()

    def _find_partners(self) -> Tensor:
        size = self._size
        cos, sin = self._rotation.tables(torch.zeros(size, dtype=torch.long, device=self._device))
        each = torch.eye(size, device=self._device)[None, None]
        kept = self._rotation.rotate(each, (torch.ones_like(cos), torch.zeros_like(sin)))
        # From each number to where it is added, with its sign; itself, where it is not rotated.
        added = self._rotation.rotate(each, (torch.zeros_like(cos), torch.ones_like(sin)))[0, 0]
        pairs = added.abs()
        one = torch.ones(size, device=self._device)
        if not (
            torch.equal(kept, each)
            and torch.equal(pairs @ pairs, each[0, 0])
            and torch.equal(pairs.sum(0), one)
        ):
            raise UnsupportedModelError(
                f"the model's rotary function does not rotate the {size} numbers of a key in "
                "pairs, which the engine needs; use LaCache.from_model and lacache.stream with "
                "this model"
            )
        return pairs.argmax(dim=0)
