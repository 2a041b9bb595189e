"""The engine's KV cache: buffers of fixed size for many sequences, and the forwards over them."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from lacache.cache.codecs import Codec, find_codecs
from lacache.cache.sequence_state import CompactionTables, GatherPlan, SequenceState
from lacache.cache.static.attention import Attend, AttendInPlace
from lacache.cache.static.compaction_ops import CompactionOps, TorchCompactionOps
from lacache.cache.static.kv_heads import KVHeads, PlanTables, Rotations
from lacache.cache.static.layers import (
    CausalMasks,
    DecodeInputs,
    DecodeLayer,
    DecodeRingLayer,
    PrefillLayer,
    PrefillRingLayer,
)
from lacache.cache.static.layout import CacheLayout, num_unrotated
from lacache.cache.static.pool import SlotPool
from lacache.cache.static.rings import RingBuffer
from lacache.cache.static.storage import Storage, fixed_buffer
from lacache.common.validation import physical_bytes
from lacache.errors import ConfigError
from lacache.models.rotary import Rotation


@final
class StaticKVCache:
    """Keys and values of `batch_size` sequences, each with counts and positions of its own.

    A forward is bracketed: `begin_prefill` or `begin_decode` returns the transformers cache for
    one call of the model, and `commit` counts its tokens. An interrupted call has written to
    unused slots only, so it can be made again.

    Args:
        layout: buffers of the model under the policy.
        batch_size: number of batch slots.
        attend: the model's attention.
        device: where the buffers are allocated.
        ops: the operations of compactions; None is torch's operators.
        attend_in_place: attention of decode steps that reads slots where they are; None copies
            those whose place changes.

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
        attend_in_place: AttendInPlace | None = None,
    ) -> None:
        self.layout = layout
        self.device = device
        self.ops = ops or TorchCompactionOps()
        self._attend = attend
        self._compaction_tables = [
            CompactionTables(bound.schedule) for bound in layout.bound.groups
        ]
        self._positions = layout.info.query_positions(
            [bound.schedule for bound in layout.bound.groups]
        )
        self._uncommitted: list[PrefillRingLayer] = []
        needed = batch_size * layout.bytes_per_sequence
        try:
            # Some systems promise more than they have, and kill the process that uses it.
            most = physical_bytes() if device.type == "cpu" else sys.maxsize
            if needed > most:
                raise MemoryError(f"{most:,} bytes are there")
            self.pools = [
                SlotPool(
                    pool, batch_size, [self._codecs(m.layer, m.heads) for m in pool.members], device
                )
                for pool in layout.pools
            ]
            self.kv_heads: dict[int, tuple[KVHeads, ...]] = self._make_kv_heads(batch_size)
            self.rings = {
                layer.index: RingBuffer(layer, batch_size, layout.info.dtype, device)
                for layer in layout.info.sliding
            }
        except (RuntimeError, MemoryError, OverflowError) as error:
            raise ConfigError(
                f"max_sequences={batch_size} of {layout.bytes_per_sequence:,} bytes each need "
                f"{needed:,} bytes, which could not be allocated on {device}; try fewer sequences "
                "or a smaller budget"
            ) from error
        self.sequences = [self._empty_sequence() for _ in range(batch_size)]
        """Counts of the sequence in each batch slot."""
        for batch_slot in range(batch_size):
            self.place(batch_slot)
        self._inputs = DecodeInputs.allocate(
            batch_size,
            [tables.schedule.capacity for tables in self._compaction_tables],
            self.pools,
            {ring.window for ring in self.rings.values()},
            device,
        )
        pool_of = {m.layer: pool for pool in self.pools for m in pool.layout.members}
        codecs = {index: self._codecs(index) for index in self.kv_heads}
        self._decode_cache = self._make_cache(
            lambda index, kv_heads: DecodeLayer(
                attend,
                kv_heads,
                self._inputs,
                pool_of[index],
                index,
                codecs[index],
                attend_in_place,
            ),
            lambda ring: DecodeRingLayer(attend, ring, self._inputs, attend_in_place),
        )
        self._mark_static([codec for pair in codecs.values() for codec in pair])

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

    def begin_prefill(self, batch_slot: int, num_new: int) -> tuple[Cache, Tensor]:
        """Prepare a forward of `num_new` tokens of one sequence, at most its `room()`.

        Returns:
            A cache for one forward, and the position ids [1, Q] of the tokens.
        """
        self._compact(batch_slot)
        sequence = self.sequences[batch_slot]
        num_cached = tuple(group.state.num_cached for group in sequence.groups)
        masks = CausalMasks(self.device)
        cache = self._make_cache(
            lambda _, heads: PrefillLayer(self._attend, heads, masks, batch_slot, num_cached),
            lambda ring: PrefillRingLayer(self._attend, ring, masks, batch_slot, sequence.num_seen),
        )
        self._uncommitted = [x for x in cache.layers if isinstance(x, PrefillRingLayer)]
        first = sequence.next_position()
        return cache, torch.arange(first, first + num_new, device=self.device)[None]

    def begin_decode(self, active: Sequence[int]) -> tuple[Cache, Tensor]:
        """Prepare a forward of one token in each of the batch slots `active`.

        Returns:
            The cache for the forward, the same at every call, and the position ids [B, 1].
        """
        for batch_slot in active:
            self._compact(batch_slot)
        self._uncommitted = []
        self._inputs.update(self.sequences, set(active))
        return self._decode_cache, self._inputs.positions

    def commit(self, batch_slot: int, num_new: int) -> None:
        """Count the tokens that a forward brought to a sequence."""
        sequence = self.sequences[batch_slot]
        sequence.is_changing = True
        for layer in self._uncommitted:
            layer.commit()
        self._uncommitted = []
        sequence.commit(num_new)
        sequence.is_changing = False

    def apply(self, batch_slot: int, group: int, plan: GatherPlan) -> None:
        """Apply a gather plan to every layer of a head group."""
        if plan.surviving is not None:
            plan = replace(plan, surviving=plan.surviving.to(self.device))

        tables: dict[tuple[int, int], PlanTables] = {}
        for heads in self.all_kv_heads():
            if heads.group != group:
                continue
            key = (heads.pattern, id(heads.rotations))
            if key not in tables:
                tables[key] = heads.plan_tables(plan)
            heads.apply(batch_slot, plan, tables[key])

    def _compact(self, batch_slot: int) -> None:
        sequence = self.sequences[batch_slot]
        for group, plan in enumerate(sequence.begin()):
            if plan is not None:
                self.apply(batch_slot, group, plan)
        self._resize(batch_slot)
        sequence.is_changing = False

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

    def _codecs(self, index: int, heads: tuple[int, ...] | None = None) -> tuple[Codec, Codec]:
        """Return the codecs of keys and values of some KV heads of a layer; None is all."""
        info = self.layout.info
        [center] = (layer.key_center for layer in info.growing if layer.index == index)
        if center is not None and heads is not None:
            center = center[list(heads)]
        return find_codecs(self.layout.kv_dtype, info.dtype, self.device, center)

    def _make_kv_heads(self, batch_size: int) -> dict[int, tuple[KVHeads, ...]]:
        info = self.layout.info
        # Sinks soon move farther than any table reaches.
        slots = [t.schedule for t in self._compaction_tables if t.schedule.positions == "slots"]
        reach = max((schedule.capacity - 1 for schedule in slots), default=0)
        rotations: dict[tuple[Rotation, int], Rotations] = {}
        made: dict[int, tuple[KVHeads, ...]] = {}
        depths = {layer.index: depth for depth, layer in enumerate(info.growing)}
        for pool in self.pools:
            for member, (keys, values, *in_pool) in zip(
                pool.layout.members, pool.buffers, strict=True
            ):
                depth, bound = depths[member.layer], self.layout.bound.groups[member.group]
                layer, schedule = info.growing[depth], bound.schedule
                rotation = layer.rotation
                if rotation is not None and (rotation, layer.key_size) not in rotations:
                    rotations[rotation, layer.key_size] = Rotations(
                        rotation, layer.key_size, reach, self.device
                    )
                unrotated = in_pool[0] if in_pool else None
                if num_apart := self.layout.num_apart(layer, schedule):
                    shape = (batch_size, len(member.heads), num_apart, layer.key_size)
                    unrotated = fixed_buffer(shape, keys.codec, self.device)
                patterns = self._compaction_tables[member.group].patterns
                kv_heads = KVHeads(
                    group=member.group,
                    heads=member.heads,
                    pattern=patterns.index(bound.pattern(depth)),
                    keys=keys,
                    values=values,
                    unrotated_keys=unrotated,
                    num_unrotated=num_unrotated(layer, schedule),
                    rotations=None if rotation is None else rotations[rotation, layer.key_size],
                    ops=self.ops,
                )
                made[layer.index] = (*made.get(layer.index, ()), kv_heads)
        return made

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
