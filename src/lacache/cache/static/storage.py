"""Storage of keys or values: slots of a pool, and how KV heads divide and read them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lacache.cache.codecs import Codec, Stored

Move = tuple[int, int, int]
"""Slots that move together: from where, to where, and how many."""


@final
class Storage:
    """Slots of keys or values, as many in each batch slot. Their memory never moves.

    Args:
        batch_size: batch slots, B.
        num_slots: slots of each batch slot, over all KV heads, P.
        parts: type and width W of each tensor; see `Codec.parts`.
        device: where the slots are allocated.
    """

    def __init__(
        self,
        batch_size: int,
        num_slots: int,
        parts: Sequence[tuple[torch.dtype, int]],
        device: torch.device,
    ) -> None:
        self.batch_size = batch_size
        # Filled now, as the system may promise pages that it does not have. Compiled steps write in
        # place only to whole tensors that they are given, not to views of them.
        self.flat = tuple(
            torch.empty(batch_size * num_slots, width, dtype=dtype, device=device).fill_(0)
            for dtype, width in parts
        )
        """The stored tensors, each [B * P, W]."""

    @property
    def tensors(self) -> Stored:
        """Views of the stored tensors, each [B, P, W]."""
        return tuple(t.view(self.batch_size, -1, t.shape[-1]) for t in self.flat)

    @property
    def num_bytes(self) -> int:
        """Bytes over all batch slots."""
        return sum(t.numel() * t.element_size() for t in self.flat)

    def clear(self, batch_slot: int) -> None:
        """Fill a batch slot with zeros: hidden slots get attention weight 0, but 0 * nan is nan."""
        for stored in self.tensors:
            stored[batch_slot].zero_()


@final
@dataclass(frozen=True)
class LayerStates:
    """Keys or values of all KV heads of a layer, wherever they are in a storage."""

    storage: Storage
    codec: Codec

    def write(self, indices: Tensor, active: Tensor, states: Tensor) -> None:
        """Set one slot for each KV head, in each active batch slot.

        Args:
            indices: of the slots in `Storage.flat` [B, H].
            active: the batch slots to write to, bool [B]; the others do not change.
            states: [B, H, 1, D].
        """
        for stored, new in zip(self.storage.flat, self.codec.encode(states), strict=True):
            old = stored[indices]
            stored[indices] = torch.where(active[:, None, None], new[:, :, 0], old)


@final
class Buffer:
    """Keys or values of some KV heads of a layer: in each batch slot, a region of a storage.

    The region has equally many slots for each head, one head after the other.

    Args:
        storage: where the regions are.
        num_heads: H.
        codec: the format of these heads.
    """

    def __init__(self, storage: Storage, num_heads: int, codec: Codec) -> None:
        self.storage = storage
        self.codec = codec
        self.num_heads = num_heads
        batch_size = storage.batch_size
        self._starts = [0] * batch_size
        self._regions: list[Stored] = [()] * batch_size
        for batch_slot in range(batch_size):
            self.place(batch_slot, 0, 0)

    def place(self, batch_slot: int, start: int, num_slots: int) -> None:
        """Let the region of a batch slot begin at index `start`, with `num_slots` slots a head.

        Its slots hold what is stored there.
        """
        region = slice(start, start + self.num_heads * num_slots)
        self._starts[batch_slot] = start
        self._regions[batch_slot] = tuple(
            t[batch_slot, region].view(self.num_heads, num_slots, t.shape[-1])
            for t in self.storage.tensors
        )

    def tensors(self, batch_slot: int) -> Stored:
        """Return the region of a batch slot as views of the stored tensors, each [H, C, W]."""
        return self._regions[batch_slot]

    def num_slots(self, batch_slot: int) -> int:
        """Return the slots C of the region of a batch slot."""
        return self._regions[batch_slot][0].shape[1]

    def all(self) -> Tensor:
        """Return all slots of all batch slots [B, H, C, D], whose regions must not have moved."""
        start, num_slots = self._starts[0], self.num_slots(0)
        region = slice(start, start + self.num_heads * num_slots)
        return self.codec.decode(
            tuple(
                t[:, region].view(len(t), self.num_heads, num_slots, t.shape[-1])
                for t in self.storage.tensors
            )
        )

    def at(self, indices: Tensor) -> Tensor:
        """Return a copy of slots by their `indices` [B, H, N] in `Storage.flat` [B, H, N, D]."""
        return self.codec.decode(tuple(stored[indices] for stored in self.storage.flat))

    def read(self, batch_slot: int, stop: int, start: int = 0) -> Tensor:
        """Return slots `start` to `stop` of a batch slot [1, H, stop - start, D]."""
        return self.codec.decode(self._slots(batch_slot, start, stop))

    def read_wide(self, batch_slot: int, stop: int, start: int = 0) -> Tensor:
        """Return what `read` does, not rounded yet, for keys that are stored again."""
        return self.codec.decode_wide(self._slots(batch_slot, start, stop))

    def write(self, batch_slot: int, start: int, states: Tensor) -> None:
        """Set the slots of a batch slot from `start` on to `states` [1, H, N, D]."""
        stop = start + states.shape[2]
        encoded = self.codec.encode(states)
        for stored, new in zip(self._regions[batch_slot], encoded, strict=True):
            stored[:, start:stop] = new[0]

    def copy_slots(self, batch_slot: int, start: int, stop: int, other: "Buffer") -> None:
        """Copy slots `start` to `stop` of a batch slot from a buffer of the same format."""
        for mine, theirs in zip(self.tensors(batch_slot), other.tensors(batch_slot), strict=True):
            mine[:, start:stop] = theirs[:, start:stop]

    def fork(self, batch_slot: int, target: int, stop: int) -> None:
        """Copy the slots before `stop` from one batch slot to another."""
        for mine, theirs in zip(self.tensors(target), self.tensors(batch_slot), strict=True):
            mine[:, :stop] = theirs[:, :stop]

    def _slots(self, batch_slot: int, start: int, stop: int) -> Stored:
        return tuple(t[None, :, start:stop] for t in self._regions[batch_slot])


def fixed_buffer(shape: tuple[int, int, int, int], codec: Codec, device: torch.device) -> Buffer:
    """Return a buffer [B, H, C, D] with a storage of its own."""
    batch_size, num_heads, num_slots, size = shape
    storage = Storage(batch_size, num_heads * num_slots, codec.parts(size), device)
    buffer = Buffer(storage, num_heads, codec)
    for batch_slot in range(batch_size):
        buffer.place(batch_slot, 0, num_slots)
    return buffer


def moves_between(
    before: Sequence[int], after: Sequence[int], lengths: Sequence[int]
) -> list[Move]:
    """Return the moves of regions that keep their order, such that none overwrites another.

    Args:
        before: the index at which each region begins, increasing.
        after: likewise, where it shall begin.
        lengths: the slots that each must keep; they fit before the next region in both places.

    Returns:
        Moves to be made one after the other; each may overlap itself.
    """
    moves = list(zip(before, after, lengths, strict=True))
    down = [(start, to, n) for start, to, n in moves if to < start and n]
    up = [(start, to, n) for start, to, n in moves if to > start and n]
    return down + up[::-1]
