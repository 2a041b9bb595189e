"""Layers of the static cache for one forward, and the tensors that decode steps read."""

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

    def update(self, sequences: Sequence[SequenceState], active: Collection[int]) -> None:
        """Set the tensors for one token in each of the batch slots `active`."""
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
        for index, visible in enumerate(self.visible):
            _show_up_to(visible, self.slots[:, index])
        for pool in self.pools:
            pool.update(self.slots)
        for window, slots in self.ring_slots.items():
            _set(slots, [sequence.num_seen % window for sequence in sequences])
            # All are visible once the window is full.
            last = self.ring_last[window]
            _set(last, [[min(sequence.num_seen, window - 1)] for sequence in sequences])
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


@final
class PrefillLayer(GroupedLayer):
    """A layer under the policy in the prefill of one sequence's chunk."""

    def __init__(
        self,
        attend: Attend,
        by_group: tuple[KVHeads, ...],
        masks: "CausalMasks",
        batch_slot: int,
        num_cached: tuple[int, ...],
    ) -> None:
        super().__init__(attend, by_group)
        self._masks = masks
        self._batch_slot = batch_slot
        self._num_cached = num_cached
        self._num_new = 0

    def insert(self, keys: Tensor, values: Tensor) -> None:
        """Add the chunk's keys and values."""
        self._num_new = keys.shape[2]
        for heads in self.by_group:
            new = self.select(keys, heads), self.select(values, heads)
            heads.insert(self._batch_slot, self._num_cached[heads.group], *new)

    def visible_kv(self, kv_heads: KVHeads) -> VisibleKV:
        """Return the slots in use; new tokens are causally masked."""
        stop = self._num_cached[kv_heads.group] + self._num_new
        keys = kv_heads.keys.read(self._batch_slot, stop)
        values = kv_heads.values.read(self._batch_slot, stop)
        return keys, values, self._masks.find(self._num_new, stop, stop)


@final
class PrefillRingLayer(AttendingLayer):
    """A sliding-window layer in the prefill of one sequence's chunk.

    The chunk is stored by `commit`, after the forward: it overwrites tokens that the forward needs
    if it is interrupted and made again.
    """

    def __init__(
        self,
        attend: Attend,
        ring: RingBuffer,
        masks: "CausalMasks",
        batch_slot: int,
        num_seen: int,
    ) -> None:
        super().__init__(attend)
        self._masks = masks
        self._ring = ring
        self._batch_slot = batch_slot
        self._num_seen = num_seen
        self._new: tuple[Tensor, Tensor] | None = None

    def insert(self, keys: Tensor, values: Tensor) -> None:
        """Hold the chunk's keys and values until `commit`."""
        self._new = keys, values

    def attend(self, module: nn.Module, query: Tensor, options: dict[str, Any]) -> Tensor:
        """Attend to the window of each token."""
        assert self._new is not None  # inserted just before
        old = self._ring.before(self._batch_slot, self._num_seen)
        keys, values = (torch.cat(states, dim=2) for states in zip(old, self._new, strict=True))
        visible = self._masks.find(query.shape[2], keys.shape[2], self._ring.window)
        return self._attend(module, query, keys, values, visible, options)

    def commit(self) -> None:
        """Store the chunk in the ring buffer."""
        assert self._new is not None  # the forward went through every layer
        self._ring.insert(self._batch_slot, self._num_seen, *self._new)


@final
class CausalMasks:
    """Causal masks of one forward, shared by its layers."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._made: dict[tuple[int, int, int], Tensor] = {}

    def find(self, num_new: int, num_keys: int, window: int) -> Tensor | None:
        """Return which of `num_keys` keys, oldest first, each of `num_new` tokens sees.

        Returns:
            A mask, bool [1, 1, Q, N]; None where each sees all.
        """
        if num_new == 1 and num_keys <= window:
            return None
        key = (num_new, num_keys, window)
        if key not in self._made:
            ones = torch.ones(num_new, num_keys, dtype=torch.bool, device=self._device)
            before = num_keys - num_new
            seen = ones.tril(before) & ones.triu(before - window + 1)
            self._made[key] = seen[None, None]
        return self._made[key]


def _set(target: Tensor, numbers: list[Any]) -> None:
    """Fill a tensor without waiting for a GPU that is busy."""
    source = torch.tensor(numbers, dtype=target.dtype, pin_memory=target.is_cuda)
    target.copy_(source, non_blocking=True)


def _show_up_to(visible: Tensor, last: Tensor) -> None:
    """Make the slots of `visible` [B, 1, 1, C] true up to `last` [B], inclusive."""
    slots = torch.arange(visible.shape[-1], device=visible.device)
    visible.copy_((slots <= last[:, None])[:, None, None])
