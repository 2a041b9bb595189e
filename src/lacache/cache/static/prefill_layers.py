"""Layers of the static cache in the prefill of one sequence's chunk."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from lacache.cache.static.attention import (
    Attend,
    AttendingLayer,
    GroupedLayer,
    VisibleKV,
    attends_twice,
)
from lacache.cache.static.chunk_plan import ChunkPlan, SubChunk
from lacache.cache.static.kv_heads import KVHeads
from lacache.cache.static.rings import RingBuffer


@final
class PrefillLayer(GroupedLayer):
    """A layer under the policy in the prefill of one sequence's chunk.

    The first sub-chunk is inserted and attended to as it is. Before each later one the layer
    compacts.
    """

    def __init__(
        self,
        attend: Attend,
        by_group: tuple[KVHeads, ...],
        masks: "CausalMasks",
        batch_slot: int,
        chunk: ChunkPlan,
        make_room: Callable[[], None],
    ) -> None:
        super().__init__(attend, by_group)
        self._masks = masks
        self._batch_slot = batch_slot
        self._chunk = chunk
        self._make_room = make_room
        self._current = chunk.sub_chunks[0]
        self._later: tuple[Tensor, Tensor] | None = None

    def insert(self, keys: Tensor, values: Tensor) -> None:
        """Add the first sub-chunk's keys and values; hold the others until `attend`."""
        self._make_room()
        self._insert(self._chunk.sub_chunks[0], keys, values)
        if len(self._chunk.sub_chunks) > 1:
            self._later = keys, values

    def attend(self, module: nn.Module, query: Tensor, options: dict[str, Any]) -> Tensor:
        """Attend with each sub-chunk to what the layer holds then."""
        first, *later = self._chunk.sub_chunks
        if not later:
            return super().attend(module, query, options)
        if self._later is None:
            raise attends_twice()
        outputs = [super().attend(module, query[:, :, : first.stop], options)]
        for sub_chunk in later:
            for heads in self.by_group:
                plan = sub_chunk.plans[heads.group]
                if plan is not None:
                    plan.apply(heads, self._batch_slot)
            self._insert(sub_chunk, *self._later)
            queries = query[:, :, sub_chunk.start : sub_chunk.stop]
            outputs.append(super().attend(module, queries, options))
        self._later = None
        return torch.cat(outputs, dim=2)

    def visible_kv(self, kv_heads: KVHeads) -> VisibleKV:
        """Return the slots in use; new tokens are causally masked."""
        num_new = self._current.stop - self._current.start
        stop = self._current.num_cached[kv_heads.group] + num_new
        keys = kv_heads.keys.read(self._batch_slot, stop)
        values = kv_heads.values.read(self._batch_slot, stop)
        return keys, values, self._masks.find(num_new, stop, stop)

    def _insert(self, sub_chunk: SubChunk, keys: Tensor, values: Tensor) -> None:
        """Add the keys and values of one sub-chunk, of those of the chunk."""
        self._current = sub_chunk
        keys, values = (states[:, :, sub_chunk.start : sub_chunk.stop] for states in (keys, values))
        for heads in self.by_group:
            new = self.select(keys, heads), self.select(values, heads)
            heads.insert(self._batch_slot, sub_chunk.num_cached[heads.group], *new)


@final
class PrefillRingLayer(AttendingLayer):
    """A sliding-window layer in the prefill of one sequence's chunk.

    A chunk overwrites tokens that its forward needs if it is interrupted and made again. So a
    chunk without compactions is stored by `commit`, after the forward. Other forwards cannot be
    made again, and these layers store at once, so that only one holds its chunk at a time.
    """

    def __init__(
        self,
        attend: Attend,
        ring: RingBuffer,
        masks: "CausalMasks",
        batch_slot: int,
        num_seen: int,
        *,
        stores_at_once: bool,
    ) -> None:
        super().__init__(attend)
        self._masks = masks
        self._ring = ring
        self._batch_slot = batch_slot
        self._num_seen = num_seen
        self._stores_at_once = stores_at_once
        self._new: tuple[Tensor, Tensor] | None = None

    def insert(self, keys: Tensor, values: Tensor) -> None:
        """Hold the chunk's keys and values until they are stored."""
        self._new = keys, values

    def attend(self, module: nn.Module, query: Tensor, options: dict[str, Any]) -> Tensor:
        """Attend to the window of each token."""
        if self._new is None:
            raise attends_twice()
        old = self._ring.before(self._batch_slot, self._num_seen)
        keys, values = (torch.cat(states, dim=2) for states in zip(old, self._new, strict=True))
        visible = self._masks.find(query.shape[2], keys.shape[2], self._ring.window)
        output = self._attend(module, query, keys, values, visible, options)
        if self._stores_at_once:
            self._store()
        return output

    def commit(self) -> None:
        """Store the chunk in the ring buffer, if it is not there yet."""
        if not self._stores_at_once:
            self._store()

    def _store(self) -> None:
        assert self._new is not None  # the forward went through every layer
        self._ring.insert(self._batch_slot, self._num_seen, *self._new)
        self._new = None


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
