"""Layers of the static cache for one forward; they attend over the buffers themselves."""

from abc import ABC, abstractmethod
from typing import Any, final

import torch
from torch import Tensor, nn

from lacache.cache.layers import EvictingLayer
from lacache.cache.static.attention import Attend
from lacache.cache.static.buffers import RingBuffer
from lacache.cache.static.decode_inputs import DecodeInputs
from lacache.cache.static.kv_heads import KVHeads
from lacache.errors import UnsupportedOperationError

VisibleKV = tuple[Tensor, Tensor, Tensor | None]
"""Keys and values [B, H, N, D], and a mask of the visible ones, bool [B or 1, 1, 1 or Q, N]."""


class AttendingLayer(EvictingLayer, ABC):
    """A layer that stores new keys and values, and computes attention over all it holds."""

    is_compileable = True

    def __init__(self, attend: Attend) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._attend = attend
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Insert, and return this layer in place of keys and values.

        The model must use the attention function `attention.NAME`, which calls `attend`.

        Args:
            key_states: new keys [B, Hkv, Q, D], rotated by the model.
            value_states: new values [B, Hkv, Q, D].
            args: ignored; models pass more than a cache needs.
            kwargs: ignored.
        """
        self.insert(key_states, value_states)
        return self, self

    @abstractmethod
    def insert(self, keys: Tensor, values: Tensor) -> None:
        """Add new keys and values [B, Hkv, Q, D]."""

    @abstractmethod
    def attend(self, module: nn.Module, query: Tensor, options: dict[str, Any]) -> Tensor:
        """Return the attention output [B, Hq, Q, D] of queries [B, Hq, Q, D]."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing, as the buffers are allocated."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return sizes that no model uses, as attention makes its own masks."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Return a count that no model uses, as position ids are always given."""
        return 0


class GroupedLayer(AttendingLayer, ABC):
    """A layer under the policy, with its KV heads in one head group or in several."""

    def __init__(self, attend: Attend, by_group: tuple[KVHeads, ...]) -> None:
        super().__init__(attend)
        self.by_group = by_group

    @abstractmethod
    def visible_kv(self, kv_heads: KVHeads) -> VisibleKV:
        """Return what the new tokens attend to in the KV heads of one group."""

    def select(self, states: Tensor, kv_heads: KVHeads) -> Tensor:
        """Return the KV heads of one group among keys or values [B, Hkv, Q, D]."""
        return states if len(self.by_group) == 1 else states[:, list(kv_heads.heads)]

    def attend(self, module: nn.Module, query: Tensor, options: dict[str, Any]) -> Tensor:
        """Attend group by group, and put the heads in their order."""
        if len(self.by_group) == 1:
            keys, values, visible = self.visible_kv(self.by_group[0])
            return self._attend(module, query, keys, values, visible, options)
        if options.get("s_aux") is not None:
            raise UnsupportedOperationError(
                "the model's attention has a number for each head, which KV heads in different "
                "groups cannot share; use groups of whole layers"
            )
        num_heads = sum(len(kv_heads.heads) for kv_heads in self.by_group)
        batch, num_queries, num_new, size = query.shape
        by_head = query.reshape(batch, num_heads, num_queries // num_heads, num_new, size)
        outputs: dict[int, Tensor] = {}
        for kv_heads in self.by_group:
            heads = kv_heads.heads
            keys, values, visible = self.visible_kv(kv_heads)
            queries = by_head[:, list(heads)].flatten(1, 2)
            output = self._attend(module, queries, keys, values, visible, options)
            outputs.update(zip(heads, output.chunk(len(heads), dim=1), strict=True))
        return torch.cat([outputs[head] for head in range(num_heads)], dim=1)


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
