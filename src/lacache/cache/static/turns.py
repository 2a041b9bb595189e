"""Rotary tables for every distance that a key can move, computed once."""

from copy import deepcopy
from typing import final

import torch
from torch import Tensor

from lacache.errors import UnsupportedModelError
from lacache.models.rotary import Rotation, Tables


@final
class Turns:
    """Moves keys by whole numbers of positions.

    Models differ in which numbers of a key turn, in pairs of which, and in the shape of their
    tables. All this is asked of the model's own function once, and laid down in tables as wide as
    a key: a number becomes its cosine times itself plus its sine times its partner.

    Args:
        rotation: the model's.
        size: D, of a key.
        reach: the furthest that keys move as a rule; further moves are computed when they come.
        device: where the keys are.

    Raises:
        UnsupportedModelError: the numbers of a key do not turn in pairs.
    """

    def __init__(self, rotation: Rotation, size: int, reach: int, device: torch.device) -> None:
        # Its owner may cast the model, and that rounds frequencies.
        self._rotation = deepcopy(rotation)
        self._size = size
        self._reach = reach
        self._device = device
        self.partners = self._find_partners()
        """Which number of a key is the partner of each [D]."""
        self._cosines, self._sines = self._wide(torch.arange(-reach, reach + 1, device=device))

    def tables(self, shifts: Tensor) -> Tables:
        """Cosines and signed sines [N, D] for `shifts` [N], which are on the CPU."""
        if len(shifts) and int(shifts.abs().max()) > self._reach:
            return self._wide(shifts.to(self._device))
        rows = (shifts + self._reach).to(self._device)
        return self._cosines[rows], self._sines[rows]

    def _wide(self, shifts: Tensor) -> Tables:
        cos, sin = self._rotation.tables(shifts)
        ones = torch.ones(1, 1, len(shifts), self._size, device=self._device)
        cosines = self._rotation.rotate(ones, (cos, torch.zeros_like(sin)))
        # Numbers that do not turn are passed on, whatever the tables say.
        passed = self._rotation.rotate(ones, (torch.zeros_like(cos), torch.zeros_like(sin)))
        sines = self._rotation.rotate(ones, (torch.zeros_like(cos), sin)) - passed
        return cosines[0, 0].contiguous(), sines[0, 0].contiguous()

    def _find_partners(self) -> Tensor:
        size = self._size
        cos, sin = self._rotation.tables(torch.zeros(size, dtype=torch.long, device=self._device))
        each = torch.eye(size, device=self._device)[None, None]
        kept = self._rotation.rotate(each, (torch.ones_like(cos), torch.zeros_like(sin)))
        # From each number to where it is added, with its sign; itself, where it does not turn.
        added = self._rotation.rotate(each, (torch.zeros_like(cos), torch.ones_like(sin)))[0, 0]
        pairs = added.abs()
        one = torch.ones(size, device=self._device)
        if not (
            torch.equal(kept, each)
            and torch.equal(pairs @ pairs, each[0, 0])
            and torch.equal(pairs.sum(0), one)
        ):
            raise UnsupportedModelError(
                f"the model's rotary function does not turn the {size} numbers of a key in pairs, "
                "which the engine needs; use LaCache.from_model and lacache.stream with this model"
            )
        return pairs.argmax(dim=0)
