"""Buffers of keys or values: plain, in eight bits, and as a ring. Their memory never moves."""

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor

from lacache.common import validation
from lacache.models.model_info import SlidingLayer

KV_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in validation.KV_DTYPES}
"""By name, the types besides the model's own that keys and values can be stored in."""


class Buffer(ABC):
    """Keys or values [B, H, C, D]: B batch slots with C slots each, in any storage format."""

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """Return the stored tensors, each [B, H, C, ...]."""

    @abstractmethod
    def all(self) -> Tensor:
        """Return every slot of every batch slot [B, H, C, D], as attention reads them."""

    @abstractmethod
    def read(self, batch_slot: int, stop: int, start: int = 0) -> Tensor:
        """Return slots `start` to `stop` of a batch slot [1, H, stop - start, D]."""

    @abstractmethod
    def write(self, batch_slot: int, start: int, states: Tensor) -> None:
        """Set the slots of a batch slot from `start` on to `states` [1, H, N, D]."""

    @abstractmethod
    def write_one(self, slots: Tensor, active: Tensor, states: Tensor) -> None:
        """Set one slot of each active batch slot.

        Args:
            slots: the slot in each batch slot [B].
            active: the batch slots to write to, bool [B]; the others do not change.
            states: [B, H, 1, D].
        """

    @property
    def num_slots(self) -> int:
        """Slots of each batch slot."""
        return self.tensors()[0].shape[2]

    @property
    def num_bytes(self) -> int:
        """Bytes over all batch slots."""
        return sum(t.numel() * t.element_size() for t in self.tensors())

    def copy_slots(self, batch_slot: int, start: int, stop: int, other: "Buffer") -> None:
        """Copy slots `start` to `stop` of a batch slot from a buffer of the same kind."""
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            mine[batch_slot, :, start:stop] = theirs[batch_slot, :, start:stop]

    def fork(self, batch_slot: int, target: int, stop: int) -> None:
        """Copy the slots before `stop` from one batch slot to another."""
        for stored in self.tensors():
            stored[target, :, :stop] = stored[batch_slot, :, :stop]

    def clear(self, batch_slot: int) -> None:
        """Fill a batch slot with zeros: hidden slots get attention weight 0, but 0 * nan is nan."""
        for stored in self.tensors():
            stored[batch_slot].zero_()


@final
class PlainBuffer(Buffer):
    """Keys or values in the model's own type."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device):
        # Filled now, as the system may promise pages that it does not have.
        self._states = torch.empty(shape, dtype=dtype, device=device).fill_(0)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the one stored tensor."""
        return (self._states,)

    def all(self) -> Tensor:
        """Return the stored tensor itself."""
        return self._states

    def read(self, batch_slot: int, stop: int, start: int = 0) -> Tensor:
        """Return a view of slots `start` to `stop`."""
        return self._states[batch_slot : batch_slot + 1, :, start:stop]

    def write(self, batch_slot: int, start: int, states: Tensor) -> None:
        """Set the slots of a batch slot from `start` on."""
        stop = start + states.shape[2]
        self._states[batch_slot : batch_slot + 1, :, start:stop] = states

    def write_one(self, slots: Tensor, active: Tensor, states: Tensor) -> None:
        """Set one slot of each active batch slot."""
        _put_one(self._states, slots, active, states)


@final
class QuantizedBuffer(Buffer):
    """Keys or values in eight bits, with a scale for every token and head.

    The largest number of a token and head becomes the largest that eight bits hold. A number is
    off by at most half a step: as int8 1/254 of the largest, as float8_e4m3fn 1/16 of itself (or
    1/458,752 of the largest, if that is more). Decoding rounds it once more, to `dtype`.

    Args:
        shape: [B, H, C, D].
        stored_in: a value of `KV_DTYPES`.
        dtype: type of the keys or values that are written and read.
        device: where the buffer is allocated.
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
        # Held as int8 either way, since some versions of torch cannot index float8. Filled now, as
        # the system may promise pages that it does not have.
        self._states = torch.empty(shape, dtype=torch.int8, device=device).fill_(0)
        scales = torch.empty((*shape[:3], 1), dtype=scale_dtype(dtype), device=device)
        self._scales = scales.fill_(0)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the eight bits of each number, as int8 [B, H, C, D], and scales [B, H, C, 1]."""
        return self._states, self._scales

    def all(self) -> Tensor:
        """Decode every slot, anew at each call."""
        return self._decode(self._states, self._scales)

    def read(self, batch_slot: int, stop: int, start: int = 0) -> Tensor:
        """Decode slots `start` to `stop`, anew at each call."""
        states, scales = (t[batch_slot : batch_slot + 1, :, start:stop] for t in self.tensors())
        return self._decode(states, scales)

    def write(self, batch_slot: int, start: int, states: Tensor) -> None:
        """Set the slots of a batch slot from `start` on."""
        stop = start + states.shape[2]
        for stored, new in zip(self.tensors(), self._encode(states), strict=True):
            stored[batch_slot : batch_slot + 1, :, start:stop] = new

    def write_one(self, slots: Tensor, active: Tensor, states: Tensor) -> None:
        """Set one slot of each active batch slot."""
        for stored, new in zip(self.tensors(), self._encode(states), strict=True):
            _put_one(stored, slots, active, new)

    def _encode(self, states: Tensor) -> tuple[Tensor, Tensor]:
        largest = _largest(self._stored_in)
        scales = states.abs().amax(dim=-1, keepdim=True).float() / largest
        # Above 0, as states that are all zero are divided by it too. By the scale as it is stored,
        # so that its rounding costs nothing; it is too small to push a number above the largest.
        scales = scales.clamp_min(torch.finfo(torch.float32).tiny).to(self._scales.dtype)
        scaled = states.float() / scales.float()
        if self._stored_in is torch.int8:
            scaled = scaled.round()
        return scaled.to(self._stored_in).view(torch.int8), scales

    def _decode(self, states: Tensor, scales: Tensor) -> Tensor:
        return (states.view(self._stored_in).to(scales.dtype) * scales).to(self._dtype)


@final
class RingBuffer:
    """Keys and values [B, H, W, D] of the last W tokens of a sliding-window layer.

    Token t is in slot t modulo W. Keys keep their original positions, so slot order is free.
    """

    def __init__(
        self, layer: SlidingLayer, batch_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.window = layer.window
        shape = (batch_size, layer.num_heads, layer.window)
        self.keys = PlainBuffer((*shape, layer.key_size), dtype, device)
        self.values = PlainBuffer((*shape, layer.value_size), dtype, device)

    def before(self, batch_slot: int, num_seen: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values [1, H, N, D] that the next token attends to, oldest first.

        N is W - 1, or `num_seen` if that is less.
        """
        slots = torch.arange(max(0, num_seen - self.window + 1), num_seen) % self.window
        keys, values = (b.read(batch_slot, self.window) for b in (self.keys, self.values))
        return keys[:, :, slots], values[:, :, slots]

    def insert(self, batch_slot: int, num_seen: int, keys: Tensor, values: Tensor) -> None:
        """Add new keys and values [1, H, Q, D], over the oldest."""
        num_new = keys.shape[2]
        kept = torch.arange(max(0, num_new - self.window), num_new)
        for buffer, states in ((self.keys, keys), (self.values, values)):
            stored = buffer.read(batch_slot, self.window)
            stored[:, :, (num_seen + kept) % self.window] = states[:, :, kept]

    def fork(self, batch_slot: int, target: int) -> None:
        """Copy one batch slot to another."""
        for buffer in (self.keys, self.values):
            buffer.fork(batch_slot, target, self.window)


def scale_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type of the scales: the model's own, so that decoding rounds once.

    Any number of eight bits fits into it. For float16 it is float32, as float16 is too coarse for
    the scales of small states.
    """
    return torch.float32 if dtype is torch.float16 else dtype


def vector_bytes(size: int, kv_dtype: str | None, dtype: torch.dtype) -> int:
    """Return the bytes of one key or value of one head.

    Args:
        size: D.
        kv_dtype: a name of `KV_DTYPES`, or None for the model's own type.
        dtype: the model's own type.
    """
    if kv_dtype is None:
        return size * dtype.itemsize
    return size * KV_DTYPES[kv_dtype].itemsize + scale_dtype(dtype).itemsize


def _largest(stored_in: torch.dtype) -> float:
    return 127.0 if stored_in is torch.int8 else torch.finfo(stored_in).max


def _put_one(stored: Tensor, slots: Tensor, active: Tensor, states: Tensor) -> None:
    """Set stored [B, H, C, D] at one slot of each active batch slot to states [B, H, 1, D]."""
    batch = torch.arange(stored.shape[0], device=stored.device)
    old = stored[batch, :, slots]
    stored[batch, :, slots] = torch.where(active[:, None, None], states[:, :, 0], old)
