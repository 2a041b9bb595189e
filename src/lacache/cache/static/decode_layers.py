"""Layers of the static cache in decode steps."""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from lacache.cache.codecs import Codec
from lacache.cache.static.attention import (
    Attend,
    AttendingLayer,
    GroupedLayer,
    InPlaceAttention,
    VisibleKV,
)
from lacache.cache.static.decode_inputs import DecodeInputs
from lacache.cache.static.kv_heads import KVHeads
from lacache.cache.static.pool import SlotPool
from lacache.cache.static.rings import RingBuffer
from lacache.cache.static.storage import LayerStates


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
        in_place: InPlaceAttention | None,
    ) -> None:
        super().__init__(attend, by_group)
        self._inputs = inputs
        self._pool = pool
        self._keys, self._values = map(LayerStates, (pool.keys, pool.values), codecs)
        self._in_place = in_place
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
        if self._in_place is not None:
            places = self._pool.first_slots, self._places.slots
            first_slots, last_slots = (tensor[:, self._columns] for tensor in places)
            states = self._keys, self._values
            output = self._in_place.attend(query, *states, first_slots, last_slots, options)
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
        in_place: InPlaceAttention | None,
    ) -> None:
        super().__init__(attend)
        self._ring = ring
        self._inputs = inputs
        self._in_place = in_place

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
        if self._in_place is not None:
            last = self._inputs.ring_last[ring.window].expand_as(ring.first_slots)
            states = ring.key_states, ring.value_states
            output = self._in_place.attend(query, *states, ring.first_slots, last, options)
            if output is not None:
                return output
        visible = self._inputs.ring_visible[ring.window]
        return self._attend(module, query, ring.keys.all(), ring.values.all(), visible, options)
