"""Keys or values of some KV heads of a layer, for every row, in memory that never moves."""

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor


class Buffer(ABC):
    """States [B, H, C, D] of B rows with C slots each, in whatever form they are stored."""

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """What is stored, each [B, H, C, ...]."""

    @abstractmethod
    def all(self) -> Tensor:
        """Every slot of every row [B, H, C, D], as attention reads them."""

    @abstractmethod
    def read(self, row: int, stop: int, start: int = 0) -> Tensor:
        """Slots `start` to `stop` of a row [1, H, stop - start, D]."""

    @abstractmethod
    def write(self, row: int, start: int, states: Tensor) -> None:
        """Set slots of a row from `start` on to states [1, H, N, D]."""

    @abstractmethod
    def write_one(self, slots: Tensor, active: Tensor, states: Tensor) -> None:
        """Set one slot of each active row.

        Args:
            slots: which, for each row [B].
            active: the rows that are meant, bool [B]; the others stay as they are.
            states: [B, H, 1, D].
        """

    @property
    def num_bytes(self) -> int:
        """Of all rows."""
        return sum(t.numel() * t.element_size() for t in self.tensors())

    def copy_row(self, row: int, start: int, stop: int, other: "Buffer") -> None:
        """Take slots `start` to `stop` of a row from a buffer of the same kind, bit for bit."""
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            mine[row, :, start:stop] = theirs[row, :, start:stop]

    def fork_row(self, row: int, target: int, stop: int) -> None:
        """Copy the first slots of one row to another."""
        for stored in self.tensors():
            stored[target, :, :stop] = stored[row, :, :stop]

    def clear_row(self, row: int) -> None:
        """Fill a row with zeros: attention gives hidden slots no weight, but 0 * nan is nan."""
        for stored in self.tensors():
            stored[row].zero_()


@final
class PlainBuffer(Buffer):
    """Stored as they are."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device):
        # Filled now, since untouched pages are not there yet and may never be.
        self._states = torch.empty(shape, dtype=dtype, device=device).fill_(0)

    def tensors(self) -> tuple[Tensor, ...]:
        """The states themselves."""
        return (self._states,)

    def all(self) -> Tensor:
        """The buffer itself."""
        return self._states

    def read(self, row: int, stop: int, start: int = 0) -> Tensor:
        """A view."""
        return self._states[row : row + 1, :, start:stop]

    def write(self, row: int, start: int, states: Tensor) -> None:
        """Set slots of a row."""
        self._states[row : row + 1, :, start : start + states.shape[2]] = states

    def write_one(self, slots: Tensor, active: Tensor, states: Tensor) -> None:
        """Set one slot of each active row."""
        put_one(self._states, slots, active, states)


def put_one(stored: Tensor, slots: Tensor, active: Tensor, states: Tensor) -> None:
    """Set stored [B, H, C, D] at one slot of each active row to states [B, H, 1, D]."""
    rows = torch.arange(stored.shape[0], device=stored.device)
    old = stored[rows, :, slots]
    stored[rows, :, slots] = torch.where(active[:, None, None], states[:, :, 0], old)
