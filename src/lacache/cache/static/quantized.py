"""Keys and values in eight bits, with a scale for every token and head."""

from typing import final

import torch
from torch import Tensor

from lacache.cache.static.buffer import Buffer, put_one
from lacache.common import validation

KV_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in validation.KV_DTYPES}
"""By name, what states can be stored in besides the model's own type."""


@final
class ScaledBuffer(Buffer):
    """The largest number of each token and head becomes the largest that eight bits hold.

    A number is off by at most half a step: as int8 1/254 of the largest, as float8_e4m3fn 1/16 of
    itself (or 1/458,752 of the largest, if that is more). The model's own type rounds it once more.

    Args:
        shape: [B, H, C, D].
        stored_in: one of `KV_DTYPES`.
        dtype: of the states that are given and read.
        device: where they are.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        stored_in: torch.dtype,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._stored_in = stored_in
        self._dtype = dtype
        # Held as int8 either way, since some versions of torch cannot index float8. Filled now,
        # since untouched pages are not there yet and may never be.
        self._states = torch.empty(shape, dtype=torch.int8, device=device).fill_(0)
        self._scales = torch.empty((*shape[:3], 1), dtype=scale_dtype(dtype), device=device).fill_(
            0
        )

    def tensors(self) -> tuple[Tensor, ...]:
        """The eight bits of each number, as int8 [B, H, C, D], and the scales [B, H, C, 1]."""
        return self._states, self._scales

    def all(self) -> Tensor:
        """Decoded anew at each call."""
        return self._decode(self._states, self._scales)

    def read(self, row: int, stop: int, start: int = 0) -> Tensor:
        """Decoded anew at each call."""
        states, scales = (stored[row : row + 1, :, start:stop] for stored in self.tensors())
        return self._decode(states, scales)

    def write(self, row: int, start: int, states: Tensor) -> None:
        """Set slots of a row."""
        stop = start + states.shape[2]
        for stored, new in zip(self.tensors(), self._encode(states), strict=True):
            stored[row : row + 1, :, start:stop] = new

    def write_one(self, slots: Tensor, active: Tensor, states: Tensor) -> None:
        """Set one slot of each active row."""
        for stored, new in zip(self.tensors(), self._encode(states), strict=True):
            put_one(stored, slots, active, new)

    def _encode(self, states: Tensor) -> tuple[Tensor, Tensor]:
        largest = _largest(self._stored_in)
        scales = states.abs().amax(dim=-1, keepdim=True).float() / largest
        # Above 0, as states that are all zero are divided by it too. By the scale as it is stored,
        # so that its rounding costs nothing; and that is too little to go beyond the largest.
        scales = scales.clamp_min(torch.finfo(torch.float32).tiny).to(self._scales.dtype)
        scaled = states.float() / scales.float()
        if self._stored_in is torch.int8:
            scaled = scaled.round()
        return scaled.to(self._stored_in).view(torch.int8), scales

    def _decode(self, states: Tensor, scales: Tensor) -> Tensor:
        return (states.view(self._stored_in).to(scales.dtype) * scales).to(self._dtype)


def scale_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type of the scales of states of a type: the same, as any number of eight bits fits into it.

    So decoding rounds once. But float16 is too coarse for the scales of small states.
    """
    return torch.float32 if dtype is torch.float16 else dtype


def bytes_per_state(size: int, kv_dtype: str | None, dtype: torch.dtype) -> int:
    """What one token's key or value of one head takes.

    Args:
        size: D.
        kv_dtype: a name of `KV_DTYPES`, or None for the model's own type.
        dtype: the model's own.
    """
    if kv_dtype is None:
        return size * dtype.itemsize
    return size * KV_DTYPES[kv_dtype].itemsize + scale_dtype(dtype).itemsize


def _largest(stored_in: torch.dtype) -> float:
    return 127.0 if stored_in is torch.int8 else torch.finfo(stored_in).max
