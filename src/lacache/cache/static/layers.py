"""Layers of the static cache for one forward, and the tensors that decode steps read."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from lacache.cache.sequence_state import SequenceState
from lacache.cache.static.attention import Attend, AttendingLayer, GroupedLayer, VisibleKV
from lacache.cache.static.buffers import RingBuffer
from lacache.cache.static.kv_heads import KVHeads


@final
@dataclass(frozen=True)
class DecodeInputs:
    """Slots, masks and positions of every batch slot, set anew before each decode step.

    The tensors are allocated once, so that a compiled step finds them at the same addresses.
    """

    positions: Tensor
    """Position ids [B, 1]."""
    active: Tensor
    """Batch slots that bring a token, bool [B]; the others compute in vain and change nothing."""
    slots: tuple[Tensor, ...]
    """For each head group, the slot of the new token [B]."""
    visible: tuple[Tensor, ...]
    """For each head group, the slots that attention sees, bool [B, 1, 1, C]."""
    ring_slots: dict[int, Tensor]
    """For each window size, the slot of the new token [B]."""
    ring_visible: dict[int, Tensor]
    """For each window size, the slots that attention sees, bool [B, 1, 1, W]."""

    @classmethod
    def allocate(
        cls,
        batch_size: int,
        capacities: Sequence[int],
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
            slots=tuple(longs(batch_size) for _ in capacities),
            visible=tuple(bools(batch_size, 1, 1, capacity) for capacity in capacities),
            ring_slots={window: longs(batch_size) for window in sorted(windows)},
            ring_visible={window: bools(batch_size, 1, 1, window) for window in sorted(windows)},
        )

    def update(self, sequences: Sequence[SequenceState], active: Collection[int]) -> None:
        """Set the tensors for one token in each of the batch slots `active`."""
        _set(self.active, [batch_slot in active for batch_slot in range(len(sequences))])
        _set(self.positions, [[sequence.next_position()] for sequence in sequences])
        for index, slots in enumerate(self.slots):
            last = self.visible[index].shape[-1] - 1
            num_cached = [sequence.groups[index].state.num_cached for sequence in sequences]
            _set(slots, [min(slot, last) for slot in num_cached])
            _show_up_to(self.visible[index], slots)
        for window, slots in self.ring_slots.items():
            # All are visible once the window is full.
            _set(slots, [min(sequence.num_seen, window) for sequence in sequences])
            _show_up_to(self.ring_visible[window], slots)
            _set(slots, [sequence.num_seen % window for sequence in sequences])

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all tensors, whose addresses never change."""
        rings = (*self.ring_slots.values(), *self.ring_visible.values())
        return (self.positions, self.active, *self.slots, *self.visible, *rings)


@final
class DecodeLayer(GroupedLayer):
    """A layer under the policy in a decode step: one token per batch slot, fixed shapes."""

    def __init__(self, attend: Attend, by_group: tuple[KVHeads, ...], inputs: DecodeInputs) -> None:
        super().__init__(attend, by_group)
        self._inputs = inputs

    def insert(self, keys: Tensor, values: Tensor) -> None:
        """Add a key and a value to each active batch slot."""
        for heads in self.by_group:
            slots = self._inputs.slots[heads.group]
            new = self.select(keys, heads), self.select(values, heads)
            heads.insert_one(slots, self._inputs.active, *new)

    def visible_kv(self, kv_heads: KVHeads) -> VisibleKV:
        """Return every slot; those in use are visible."""
        visible = self._inputs.visible[kv_heads.group]
        return kv_heads.keys.all(), kv_heads.values.all(), visible


@final
class DecodeRingLayer(AttendingLayer):
    """A sliding-window layer in a decode step."""

    def __init__(self, attend: Attend, ring: RingBuffer, inputs: DecodeInputs) -> None:
        super().__init__(attend)
        self._ring = ring
        self._inputs = inputs

    def insert(self, keys: Tensor, values: Tensor) -> None:
        """Add a key and a value to each active batch slot, over the oldest."""
        slots = self._inputs.ring_slots[self._ring.window]
        self._ring.keys.write_one(slots, self._inputs.active, keys)
        self._ring.values.write_one(slots, self._inputs.active, values)

    def attend(self, module: nn.Module, query: Tensor, options: dict[str, Any]) -> Tensor:
        """Attend to the ring buffer."""
        visible = self._inputs.ring_visible[self._ring.window]
        keys, values = self._ring.keys.all(), self._ring.values.all()
        return self._attend(module, query, keys, values, visible, options)


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
