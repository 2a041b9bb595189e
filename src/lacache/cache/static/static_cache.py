"""The engine's KV cache: buffers of fixed size for many sequences, and the forwards over them."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, final

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from lacache.cache.codecs import Codec
from lacache.cache.group_state import CompactionTables, GatherPlan
from lacache.cache.sequence_state import SequenceState
from lacache.cache.static.allocation import allocate_buffers, layer_codecs
from lacache.cache.static.attention import Attend, GroupedLayer, InPlaceAttention
from lacache.cache.static.chunk_plan import (
    MAX_SUB_CHUNKS,
    ChunkPlan,
    SlotsInUse,
    plan_chunk,
    sub_chunk_ends,
)
from lacache.cache.static.compaction_ops import CompactionOps, TorchCompactionOps
from lacache.cache.static.decode_inputs import DecodeInputs
from lacache.cache.static.decode_layers import (
    DecodeLayer,
    DecodeRingLayer,
    DecodeSlots,
)
from lacache.cache.static.group_heads import GroupHeads
from lacache.cache.static.kv_heads import KVHeads
from lacache.cache.static.layout import CacheLayout
from lacache.cache.static.pool import SlotPool
from lacache.cache.static.prefill_layers import CausalMasks, PrefillLayer, PrefillRingLayer
from lacache.cache.static.rings import RingBuffer
from lacache.cache.static.storage import Storage
from lacache.cache.static.whole_chunk import WholeChunk
from lacache.cache.static.whole_chunk_layer import WholeChunkLayer


@final
class StaticKVCache:
    """Keys and values of `batch_size` sequences, each with counts and positions of its own.

    A forward is bracketed: `begin_prefill` or `begin_decode` returns the transformers cache for
    one call of the model, and `commit` counts its tokens. An interrupted call without a compaction
    within it has written to unused slots only, so it can be made again. Otherwise layers hold
    different tokens, and the sequence must be cleared.

    Args:
        layout: buffers of the model under the policy.
        batch_size: number of batch slots.
        attend: the model's attention.
        device: where the buffers are allocated.
        ops: the operations of compactions; None is torch's operators.
        in_place: attention that reads slots where they are; None copies those whose place changes.

    Raises:
        ConfigError: the buffers do not fit in memory.
    """

    # Tensors made in inference mode could not be written to outside of it.
    @torch.inference_mode(False)
    def __init__(
        self,
        layout: CacheLayout,
        batch_size: int,
        attend: Attend,
        device: torch.device,
        ops: CompactionOps | None = None,
        in_place: InPlaceAttention | None = None,
    ) -> None:
        self.layout = layout
        self.device = device
        self.ops = ops or TorchCompactionOps()
        self._attend = attend
        self._in_place = in_place
        self._compaction_tables = [
            CompactionTables(bound.schedule) for bound in layout.bound.groups
        ]
        self._positions = layout.info.query_positions(
            [bound.schedule for bound in layout.bound.groups]
        )
        self._chunk: ChunkPlan | WholeChunk | None = None
        self._uncommitted: list[PrefillRingLayer] = []
        self.pools, self.kv_heads, self.rings = allocate_buffers(
            layout, self._compaction_tables, batch_size, self.ops, device
        )
        self.sequences = [self._empty_sequence() for _ in range(batch_size)]
        """Counts of the sequence in each batch slot."""
        for batch_slot in range(batch_size):
            self.place(batch_slot)
        self._group_heads = [self._heads_of(group) for group in range(len(layout.bound.groups))]
        self._inputs = DecodeInputs.allocate(
            batch_size,
            [tables.schedule.capacity for tables in self._compaction_tables],
            self.pools,
            {ring.window for ring in self.rings.values()},
            device,
        )
        pool_of = {m.layer: pool for pool in self.pools for m in pool.layout.members}
        codecs = {index: layer_codecs(layout, device, index) for index in self.kv_heads}
        self._decode_cache = self._make_cache(
            lambda index, kv_heads: DecodeLayer(
                attend,
                kv_heads,
                self._inputs,
                pool_of[index],
                index,
                codecs[index],
                in_place,
            ),
            lambda ring: DecodeRingLayer(attend, ring, self._inputs, in_place),
        )
        self._mark_static([codec for pair in codecs.values() for codec in pair])

    @property
    def active(self) -> Tensor:
        """The batch slots that bring a token in the decode step, bool [B]."""
        return self._inputs.active

    def decode_slots(self) -> dict[int, DecodeSlots]:
        """Return where each layer of the model reads and writes in decode steps."""
        layers = enumerate(self._decode_cache.layers)
        kinds = (DecodeLayer, DecodeRingLayer)
        return {index: layer.slots for index, layer in layers if isinstance(layer, kinds)}

    @property
    def num_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(storage.num_bytes for storage in self.storages())

    def all_kv_heads(self) -> Iterator[KVHeads]:
        """Iterate over the KV heads of all layers and head groups."""
        return (kv_heads for by_group in self.kv_heads.values() for kv_heads in by_group)

    def clear(self, batch_slot: int) -> None:
        """Remove a sequence, and free its batch slot."""
        self.sequences[batch_slot] = self._empty_sequence()
        self.place(batch_slot)
        for storage in self.storages():
            storage.clear(batch_slot)

    def fork(self, batch_slot: int, target: int) -> None:
        """Copy a sequence to another batch slot."""
        sequence = self.sequences[target] = self.sequences[batch_slot].copy()
        self.place(target)
        for kv_heads in self.all_kv_heads():
            num_cached = sequence.groups[kv_heads.group].state.num_cached
            for buffer in kv_heads.buffers:
                buffer.fork(batch_slot, target, num_cached)
        for ring in self.rings.values():
            ring.fork(batch_slot, target)

    def chunk_length(self, batch_slot: int, num_tokens: int) -> int:
        """Return how many of a sequence's next `num_tokens` tokens one forward can bring.

        These are all, as a rule. A chunk ends earlier where keys are renumbered, where it has many
        sub-chunks and no kernel, where other layers attend to a layer's keys, or where the pool has
        no room for layers that have compacted beside those that have not.
        """
        sequence = self.sequences[batch_slot]
        if self.layout.info.shares_kv:
            return min(num_tokens, sequence.room())
        in_kernel = self._in_place is not None and not self._by_sub_chunk
        length = 0
        for number, (end, use) in enumerate(self._sub_chunk_ends(sequence, num_tokens)):
            if number == MAX_SUB_CHUNKS and not in_kernel:
                break
            if not all(pool.fits(use) for pool in self._moving(use)):
                break
            length = end
        return length

    def begin_prefill(self, batch_slot: int, num_new: int) -> tuple[Cache, Tensor]:
        """Prepare a forward of `num_new` tokens of one sequence, at most its `chunk_length`.

        Returns:
            A cache for one forward, and the position ids [1, Q] of the tokens.
        """
        sequence = self.sequences[batch_slot]
        *_, (_, use) = self._sub_chunk_ends(sequence, num_new)
        self._compact(batch_slot, use)
        masks = CausalMasks(self.device)
        moving = {m.layer: pool for pool in self._moving(use) for m in pool.layout.members}

        def make_room(index: int) -> None:
            if index in moving:
                moving[index].enter(batch_slot, index, use, self.ops)

        chunk: ChunkPlan | WholeChunk
        if self._by_sub_chunk:
            chunk = plan = plan_chunk(sequence, num_new, self.device)

            def kv_layer(index: int, heads: tuple[KVHeads, ...]) -> GroupedLayer:
                room = partial(make_room, index)
                return PrefillLayer(self._attend, heads, masks, batch_slot, plan, room)

        else:
            chunk = whole = WholeChunk(sequence, num_new, self.device)
            slots = self.decode_slots()

            def kv_layer(index: int, heads: tuple[KVHeads, ...]) -> GroupedLayer:
                room, own = partial(make_room, index), (slots[index], self._in_place)
                return WholeChunkLayer(self._attend, heads, whole, batch_slot, *own, room)

        self._chunk = chunk
        # Layers compact one after the other within the forward.
        sequence.is_changing = chunk.compacts
        cache = self._make_cache(
            kv_layer,
            lambda ring: PrefillRingLayer(
                self._attend,
                ring,
                masks,
                batch_slot,
                sequence.num_seen,
                stores_at_once=chunk.compacts,
            ),
        )
        self._uncommitted = [x for x in cache.layers if isinstance(x, PrefillRingLayer)]
        return cache, chunk.positions

    @property
    def _by_sub_chunk(self) -> bool:
        """Whether layers compact between sub-chunks: where all keys move with each compaction."""
        groups = self.layout.bound.groups
        return any(group.schedule.positions == "slots" for group in groups)

    def _sub_chunk_ends(
        self, sequence: SequenceState, num_tokens: int
    ) -> Iterator[tuple[int, SlotsInUse]]:
        return sub_chunk_ends(sequence, num_tokens, at_once=not self._by_sub_chunk)

    def begin_decode(self, active: Sequence[int], *, masks: bool = True) -> tuple[Cache, Tensor]:
        """Prepare a forward of one token in each of the batch slots `active`.

        Args:
            active: the batch slots.
            masks: whether to set the masks, which those who read `decode_slots` do not need.

        Returns:
            The cache for the forward, the same at every call, and the position ids [B, 1].
        """
        is_calm = all(self.sequences[batch_slot].is_calm for batch_slot in active)
        for batch_slot in active:
            self._compact(batch_slot)
        self._chunk = None
        self._uncommitted = []
        self._inputs.update(self.sequences, active, masks=masks, is_calm=is_calm)
        return self._decode_cache, self._inputs.positions

    def commit(self, batch_slot: int, num_new: int) -> None:
        """Count the tokens that a forward brought to a sequence."""
        sequence = self.sequences[batch_slot]
        sequence.is_changing = True
        for layer in self._uncommitted:
            layer.commit()
        self._uncommitted = []
        if self._chunk is None:
            sequence.commit(num_new)
        else:
            sequence.follow(self._chunk.after)
            self._chunk = None
        sequence.is_changing = False

    def apply(self, batch_slot: int, group: int, plan: GatherPlan) -> None:
        """Apply a gather plan to every layer of a head group."""
        for heads in self._group_heads[group]:
            heads.apply(batch_slot, plan)

    def _compact(self, batch_slot: int, use: SlotsInUse | None = None) -> None:
        """Run a compaction that is due, and move regions for the next tokens.

        Args:
            batch_slot: the batch slot.
            use: slots in use within the next chunk; None for a decode step.
        """
        sequence = self.sequences[batch_slot]
        if use is None and sequence.is_calm:
            return
        for group, plan in enumerate(sequence.begin()):
            if plan is not None:
                self.apply(batch_slot, group, plan)
        moving = self._moving(use) if use is not None else []
        if use is not None and moving:
            for pool in moving:
                pool.enter(batch_slot, -1, use, self.ops)
        else:
            self._resize(batch_slot)
        sequence.is_changing = False

    def _heads_of(self, group: int) -> list[GroupHeads]:
        """Return the KV heads of a head group, by pool."""
        found = []
        for pool in self.pools:
            layers = [m.layer for m in pool.layout.members if m.group == group]
            heads = [(i, one) for i in layers for one in self.kv_heads[i] if one.group == group]
            if heads:
                found.append(GroupHeads(pool, heads))
        return found

    def _moving(self, use: SlotsInUse) -> list[SlotPool]:
        """Return the pools whose regions move within a chunk."""
        return [pool for pool in self.pools if use.resizes and pool.layout.regions_move]

    def _empty_sequence(self) -> SequenceState:
        return SequenceState(self._compaction_tables, self._positions)

    def place(self, batch_slot: int) -> None:
        """Lay out the regions of a sequence whose counts were set; its slots are to be filled."""
        for pool in self.pools:
            pool.place(batch_slot, self._num_slots(batch_slot, pool))

    def _resize(self, batch_slot: int) -> None:
        """Move regions to where the next tokens find room."""
        num_cached = [group.state.num_cached for group in self.sequences[batch_slot].groups]
        for pool in self.pools:
            if not pool.layout.regions_move:
                continue
            pool.resize(batch_slot, self._num_slots(batch_slot, pool), num_cached, self.ops)

    def _num_slots(self, batch_slot: int, pool: SlotPool) -> tuple[int, ...]:
        """Return the slots that each head group's regions have now."""
        if pool.layout.regions_move:
            return self.sequences[batch_slot].num_slots()
        return tuple(tables.schedule.capacity for tables in self._compaction_tables)

    def storages(self) -> list[Storage]:
        """Return all that is allocated."""
        rings = [b.storage for ring in self.rings.values() for b in (ring.keys, ring.values)]
        sinks = [
            heads.unrotated_keys.storage
            for heads in self.all_kv_heads()
            if heads.unrotated_keys is not None
        ]
        pools = [storage for pool in self.pools for storage in pool.storages]
        return list(dict.fromkeys([*rings, *pools, *sinks]))

    def _mark_static(self, codecs: Sequence[Codec]) -> None:
        """Let compiled steps know that all tensors of the cache are at fixed addresses.

        They would give CUDA graphs up if they wrote to inputs that may move in memory.
        """
        codecs = [*codecs, *(b.codec for heads in self.all_kv_heads() for b in heads.buffers)]
        tensors = [
            *self._inputs.tensors(),
            *(tensor for storage in self.storages() for tensor in storage.flat),
            *(tensor for codec in codecs for tensor in codec.constants()),
            *(pool.last_indices for pool in self.pools),
            *(ring.first_slots for ring in self.rings.values()),
        ]
        for tensor in tensors:
            torch._dynamo.mark_static_address(tensor)

    def _make_cache(
        self,
        kv_layer: Callable[[int, tuple[KVHeads, ...]], Any],
        ring_layer: Callable[[RingBuffer], Any],
    ) -> Cache:
        """Return a cache with a layer for each of the model's that has keys and values."""
        layers: list[Any] = list(DynamicCache(config=self.layout.info.text_config).layers)
        for index, by_group in self.kv_heads.items():
            layers[index] = kv_layer(index, by_group)
        for index, ring in self.rings.items():
            layers[index] = ring_layer(ring)
        return Cache(layers=layers)
