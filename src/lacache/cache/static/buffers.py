"""Buffers of keys or values, and rings of them. Their memory never moves."""

from typing import final

import torch
from torch import Tensor

from lacache.cache.codecs import Codec, PlainCodec
from lacache.models.model_info import SlidingLayer


@final
class Buffer:
    """Keys or values [B, H, C, D]: B batch slots with C slots each, in the format of a codec.

    Args:
        shape: [B, H, C, D].
        codec: the storage format.
        device: where the buffer is allocated.
    """

    def __init__(
        self, shape: tuple[int, int, int, int], codec: Codec, device: torch.device
    ) -> None:
        *slots, size = shape
        self.codec = codec
        # Filled now, as the system may promise pages that it does not have.
        self._stored = tuple(
            torch.empty((*slots, width), dtype=dtype, device=device).fill_(0)
            for dtype, width in codec.parts(size)
        )

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the stored tensors, each [B, H, C, W]."""
        return self._stored

    def all(self) -> Tensor:
        """Return every slot of every batch slot [B, H, C, D], as attention reads them."""
        return self.codec.decode(self._stored)

    def read(self, batch_slot: int, stop: int, start: int = 0) -> Tensor:
        """Return slots `start` to `stop` of a batch slot [1, H, stop - start, D]."""
        one = slice(batch_slot, batch_slot + 1)
        return self.codec.decode(tuple(t[one, :, start:stop] for t in self._stored))

    def read_wide(self, batch_slot: int, stop: int, start: int = 0) -> Tensor:
        """Return what `read` does, not rounded yet, for keys that are stored again."""
        one = slice(batch_slot, batch_slot + 1)
        return self.codec.decode_wide(tuple(t[one, :, start:stop] for t in self._stored))

    def write(self, batch_slot: int, start: int, states: Tensor) -> None:
        """Set the slots of a batch slot from `start` on to `states` [1, H, N, D]."""
        stop = start + states.shape[2]
        for stored, new in zip(self._stored, self.codec.encode(states), strict=True):
            stored[batch_slot : batch_slot + 1, :, start:stop] = new

    def write_one(self, slots: Tensor, active: Tensor, states: Tensor) -> None:
        """Set one slot of each active batch slot.

        Args:
            slots: the slot in each batch slot [B].
            active: the batch slots to write to, bool [B]; the others do not change.
            states: [B, H, 1, D].
        """
        for stored, new in zip(self._stored, self.codec.encode(states), strict=True):
            _put_one(stored, slots, active, new)

    @property
    def num_slots(self) -> int:
        """Slots of each batch slot."""
        return self._stored[0].shape[2]

    @property
    def num_bytes(self) -> int:
        """Bytes over all batch slots."""
        return sum(t.numel() * t.element_size() for t in self._stored)

    def copy_slots(self, batch_slot: int, start: int, stop: int, other: "Buffer") -> None:
        """Copy slots `start` to `stop` of a batch slot from a buffer of the same kind."""
        for mine, theirs in zip(self._stored, other._stored, strict=True):
            mine[batch_slot, :, start:stop] = theirs[batch_slot, :, start:stop]

    def fork(self, batch_slot: int, target: int, stop: int) -> None:
        """Copy the slots before `stop` from one batch slot to another."""
        for stored in self._stored:
            stored[target, :, :stop] = stored[batch_slot, :, :stop]

    def clear(self, batch_slot: int) -> None:
        """Fill a batch slot with zeros: hidden slots get attention weight 0, but 0 * nan is nan."""
        for stored in self._stored:
            stored[batch_slot].zero_()


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
        self.keys = Buffer((*shape, layer.key_size), PlainCodec(dtype), device)
        self.values = Buffer((*shape, layer.value_size), PlainCodec(dtype), device)

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


def _put_one(stored: Tensor, slots: Tensor, active: Tensor, states: Tensor) -> None:
    """Set stored [B, H, C, D] at one slot of each active batch slot to states [B, H, 1, D]."""
    batch = torch.arange(stored.shape[0], device=stored.device)
    old = stored[batch, :, slots]
    stored[batch, :, slots] = torch.where(active[:, None, None], states[:, :, 0], old)
