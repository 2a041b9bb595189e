"""Layers of the static cache in decode steps, and the tensors that these read."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from lacache.cache.codecs import Codec
from lacache.cache.sequence_state import SequenceState
from lacache.cache.static.attention import (
    Attend,
    AttendingLayer,
    AttendInPlace,
    GroupedLayer,
    VisibleKV,
)
from lacache.cache.static.kv_heads import KVHeads
from lacache.cache.static.pool import SlotPool
from lacache.cache.static.rings import RingBuffer
from lacache.cache.static.storage import LayerStates


@final
@dataclass(frozen=True)
class PoolInputs:
    """Places of the new token in each KV head of a pool, set anew before each decode step."""

    pool: SlotPool
    slots: Tensor
    """The slot of the new token [B, T]."""
    indices: Tensor
    """Its index in `Storage.flat` [B, T]."""

    def update(self, slots: Tensor) -> None:
        """Set the tensors, given the slot of the new token in each head group [B, G]."""
        self.slots.copy_(slots[:, self.pool.groups])
        torch.add(self.pool.first_slots, self.slots, out=self.indices)


@final
@dataclass(frozen=True)
class DecodeInputs:
    """Slots, masks and positions of every batch slot, set anew before each decode step.

    The tensors are allocated once, so that a compiled step finds them at the same addresses.
    """

    positions: Tensor
    """Position ids [B, 1]."""
    active: Tensor
    """Batch slots that bring a token, bool [B]; the others change nothing."""
    slots: Tensor
    """The slot of the new token in each head group [B, G]."""
    visible: tuple[Tensor, ...]
    """For each head group, the slots that attention sees, bool [B, 1, 1, C]."""
    pools: tuple[PoolInputs, ...]
    """For each pool, the slots and indices of the new token."""
    ring_slots: dict[int, Tensor]
    """For each window size, the slot of the new token [B]."""
    ring_last: dict[int, Tensor]
    """For each window size, the last slot that attention sees [B, 1]."""
    ring_visible: dict[int, Tensor]
    """For each window size, the slots that attention sees, bool [B, 1, 1, W]."""

    @classmethod
    def allocate(
        cls,
        batch_size: int,
        capacities: Sequence[int],
        pools: Sequence[SlotPool],
        windows: Collection[int],
        device: torch.device,
    ) -> "DecodeInputs":
        """Allocate the tensors, for head groups of these capacities and these window sizes."""

        def longs(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.long, device=device)

        def bools(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.bool, device=device)

        return cls(
            positions=longs(batch_size, 1),
            active=bools(batch_size),
            slots=longs(batch_size, len(capacities)),
            visible=tuple(bools(batch_size, 1, 1, capacity) for capacity in capacities),
            pools=tuple(
                PoolInputs(pool, *(longs(*pool.first_slots.shape) for _ in range(2)))
                for pool in pools
            ),
            ring_slots={window: longs(batch_size) for window in sorted(windows)},
            ring_last={window: longs(batch_size, 1) for window in sorted(windows)},
            ring_visible={window: bools(batch_size, 1, 1, window) for window in sorted(windows)},
        )

    def update(
        self, sequences: Sequence[SequenceState], active: Collection[int], *, masks: bool
    ) -> None:
        """Set the tensors, or all but masks, for one token in each of the batch slots `active`."""
        _set(self.active, [batch_slot in active for batch_slot in range(len(sequences))])
        _set(self.positions, [[sequence.next_position()] for sequence in sequences])
        # Inactive sequences may have no room; their new token is not stored.
        _set(
            self.slots,
            [
                [
                    min(group.state.num_cached, num_slots - 1)
                    for group, num_slots in zip(each.groups, each.num_slots(), strict=True)
                ]
                for each in sequences
            ],
        )
        for pool in self.pools:
            pool.update(self.slots)
        for window, slots in self.ring_slots.items():
            _set(slots, [sequence.num_seen % window for sequence in sequences])
            # All are visible once the window is full.
            last = self.ring_last[window]
            _set(last, [[min(sequence.num_seen, window - 1)] for sequence in sequences])
        if masks:
            for index, visible in enumerate(self.visible):
                _show_up_to(visible, self.slots[:, index])
            for window, last in self.ring_last.items():
                _show_up_to(self.ring_visible[window], last[:, 0])

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all tensors, whose addresses never change."""
        pools = [t for one in self.pools for t in (one.slots, one.indices, one.pool.first_slots)]
        rings = (self.ring_slots, self.ring_last, self.ring_visible)
        return (
            self.positions,
            self.active,
            self.slots,
            *self.visible,
            *pools,
            *(tensor for tensors in rings for tensor in tensors.values()),
        )


@final
@dataclass(frozen=True)
class DecodeSlots:
    """Slots that a layer reads and writes in a decode step: views of memory that never moves."""

    keys: LayerStates
    values: LayerStates
    first: Tensor
    """In `Storage.flat`, the index of each KV head's first slot [B, H]."""
    new: Tensor
    """The slot of the new token, counted from the first [B, H]."""
    last: Tensor
    """The last slot that attention sees [B, H]."""


@final
class DecodeLayer(GroupedLayer):
    """A layer under the policy in a decode step: one token per batch slot, fixed shapes."""

    def __init__(
        self,
        attend: Attend,
        by_group: tuple[KVHeads, ...],
        inputs: DecodeInputs,
        pool: SlotPool,
        index: int,
        codecs: tuple[Codec, Codec],
        attend_in_place: AttendInPlace | None,
    ) -> None:
        super().__init__(attend, by_group)
        self._inputs = inputs
        self._pool = pool
        self._keys, self._values = map(LayerStates, (pool.keys, pool.values), codecs)
        self._attend_rows = attend_in_place
        self._columns = pool.columns(index)
        [self._places] = (one for one in inputs.pools if one.pool is pool)

    @property
    def slots(self) -> DecodeSlots:
        """Slots that the layer reads and writes."""
        first, slots = self._pool.first_slots, self._places.slots[:, self._columns]
        return DecodeSlots(self._keys, self._values, first[:, self._columns], slots, slots)

    def insert(self, keys: Tensor, values: Tensor) -> None:
        """Add a key and a value to each active batch slot."""
        indices = self._places.indices[:, self._columns]
        self._keys.write(indices, self._inputs.active, keys)
        self._values.write(indices, self._inputs.active, values)

    def visible_kv(self, kv_heads: KVHeads) -> VisibleKV:
        """Return every slot of a head group; those in use are visible."""
        visible = self._inputs.visible[kv_heads.group]
        if not self._pool.layout.regions_move:
            return kv_heads.keys.all(), kv_heads.values.all(), visible
        first_slots = self._pool.first_slots[:, self._columns][:, list(kv_heads.heads)]
        # Slots beyond the region are hidden, and must be slots of the same sequence.
        slots = torch.arange(visible.shape[-1], device=first_slots.device)
        last = self._pool.last_indices[:, None, None]
        indices = torch.minimum(first_slots[..., None] + slots, last)
        return kv_heads.keys.at(indices), kv_heads.values.at(indices), visible

    def attend(self, module: nn.Module, query: Tensor, options: dict[str, Any]) -> Tensor:
        """Attend to the slots in use, of all head groups at once if that is supported."""
        if self._attend_rows is not None:
            places = self._pool.first_slots, self._places.slots
            first_slots, last_slots = (tensor[:, self._columns] for tensor in places)
            states = self._keys, self._values
            output = self._attend_rows(query, *states, first_slots, last_slots, options)
            if output is not None:
                return output
        return super().attend(module, query, options)


@final
class DecodeRingLayer(AttendingLayer):
    """A sliding-window layer in a decode step."""

    def __init__(
        self,
        attend: Attend,
        ring: RingBuffer,
        inputs: DecodeInputs,
        attend_in_place: AttendInPlace | None,
    ) -> None:
        super().__init__(attend)
        self._ring = ring
        self._inputs = inputs
        self._attend_rows = attend_in_place

    @property
    def slots(self) -> DecodeSlots:
        """Slots that the layer reads and writes."""
        ring, inputs = self._ring, self._inputs
        new, last = inputs.ring_slots[ring.window][:, None], inputs.ring_last[ring.window]
        new, last = (tensor.expand_as(ring.first_slots) for tensor in (new, last))
        return DecodeSlots(ring.key_states, ring.value_states, ring.first_slots, new, last)

    def insert(self, keys: Tensor, values: Tensor) -> None:
        """Add a key and a value to each active batch slot, over the oldest."""
        slots = self._inputs.ring_slots[self._ring.window]
        self._ring.insert_one(slots, self._inputs.active, keys, values)

    def attend(self, module: nn.Module, query: Tensor, options: dict[str, Any]) -> Tensor:
        """Attend to the ring buffer."""
        ring = self._ring
        if self._attend_rows is not None:
            last = self._inputs.ring_last[ring.window].expand_as(ring.first_slots)
            states = ring.key_states, ring.value_states
            output = self._attend_rows(query, *states, ring.first_slots, last, options)
            if output is not None:
                return output
        visible = self._inputs.ring_visible[ring.window]
        return self._attend(module, query, ring.keys.all(), ring.values.all(), visible, options)


def _set(target: Tensor, numbers: list[Any]) -> None:
    """Fill a tensor without waiting for a GPU that is busy."""
    source = torch.tensor(numbers, dtype=target.dtype, pin_memory=target.is_cuda)
    target.copy_(source, non_blocking=True)


def _show_up_to(visible: Tensor, last: Tensor) -> None:
    """Make the slots of `visible` [B, 1, 1, C] true up to `last` [B], inclusive."""
    slots = torch.arange(visible.shape[-1], device=visible.device)
    visible.copy_((slots <= last[:, None])[:, None, None])
