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
from lacache.cache.static.attention import Attend
from lacache.cache.static.buffers import Buffer, RingBuffer
from lacache.cache.static.kv_heads import (
    CompactionOps,
    KVHeads,
    PlanTables,
    Rotations,
    TorchCompactionOps,
)
from lacache.cache.static.layers import (
    CausalMasks,
    DecodeInputs,
    DecodeLayer,
    DecodeRingLayer,
    PrefillLayer,
    PrefillRingLayer,
)
from lacache.cache.static.layout import CacheLayout, num_unrotated
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
            self.kv_heads: dict[int, tuple[KVHeads, ...]] = self._allocate_kv_heads(batch_size)
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
        self._inputs = DecodeInputs.allocate(
            batch_size,
            [tables.schedule.capacity for tables in self._compaction_tables],
            {ring.window for ring in self.rings.values()},
            device,
        )
        # Compiled steps give up CUDA graphs if they write to inputs that may move in memory.
        stored = (
            t for buffer in self._buffers() for t in (*buffer.tensors(), *buffer.codec.constants())
        )
        for tensor in (*self._inputs.tensors(), *stored):
            torch._dynamo.mark_static_address(tensor)
        self._decode_cache = self._make_cache(
            lambda kv_heads: DecodeLayer(attend, kv_heads, self._inputs),
            lambda ring: DecodeRingLayer(attend, ring, self._inputs),
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.num_bytes for buffer in self._buffers())

    def all_kv_heads(self) -> Iterator[KVHeads]:
        """Iterate over the KV heads of all layers and head groups."""
        return (kv_heads for by_group in self.kv_heads.values() for kv_heads in by_group)

    def clear(self, batch_slot: int) -> None:
        """Remove a sequence, and free its batch slot."""
        self.sequences[batch_slot] = self._empty_sequence()
        for buffer in self._buffers():
            buffer.clear(batch_slot)

    def fork(self, batch_slot: int, target: int) -> None:
        """Copy a sequence to another batch slot."""
        sequence = self.sequences[batch_slot].copy()
        for kv_heads in self.all_kv_heads():
            num_cached = sequence.groups[kv_heads.group].state.num_cached
            for buffer in kv_heads.buffers:
                buffer.fork(batch_slot, target, num_cached)
        for ring in self.rings.values():
            ring.fork(batch_slot, target)
        self.sequences[target] = sequence

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
            lambda heads: PrefillLayer(self._attend, heads, masks, batch_slot, num_cached),
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
        sequence.is_changing = False

    def _empty_sequence(self) -> SequenceState:
        return SequenceState(self._compaction_tables, self._positions)

    def _buffers(self) -> list[Buffer]:
        rings = [buffer for ring in self.rings.values() for buffer in (ring.keys, ring.values)]
        return [*rings, *(buffer for heads in self.all_kv_heads() for buffer in heads.buffers)]

    def _allocate_kv_heads(self, batch_size: int) -> dict[int, tuple[KVHeads, ...]]:
        info = self.layout.info
        # Sinks soon move farther than any table reaches.
        slots = [t.schedule for t in self._compaction_tables if t.schedule.positions == "slots"]
        reach = max((schedule.capacity - 1 for schedule in slots), default=0)
        rotations: dict[tuple[Rotation, int], Rotations] = {}
        made: dict[int, tuple[KVHeads, ...]] = {}
        for group, bound in enumerate(self.layout.bound.groups):
            patterns = self._compaction_tables[group].patterns
            for depth, heads in bound.heads.items():
                layer = info.growing[depth]
                shape = (batch_size, len(heads), bound.schedule.capacity)
                rotation, key_size = layer.rotation, layer.key_size
                if rotation is not None and (rotation, key_size) not in rotations:
                    rotations[rotation, key_size] = Rotations(
                        rotation, key_size, reach, self.device
                    )
                center = layer.key_center
                key_codec, value_codec = find_codecs(
                    self.layout.kv_dtype,
                    info.dtype,
                    self.device,
                    None if center is None else center[list(heads)],
                )
                kv_heads = KVHeads(
                    group=group,
                    heads=heads,
                    pattern=patterns.index(bound.pattern(depth)),
                    keys=self._allocate(shape, key_size, key_codec),
                    values=self._allocate(shape, layer.value_size, value_codec),
                    unrotated_keys=self._allocate((*shape[:2], moving), key_size, key_codec)
                    if (moving := num_unrotated(layer, bound.schedule))
                    else None,
                    rotations=None if rotation is None else rotations[rotation, key_size],
                    ops=self.ops,
                )
                made[layer.index] = (*made.get(layer.index, ()), kv_heads)
        return made

    def _allocate(self, shape: tuple[int, int, int], size: int, codec: Codec) -> Buffer:
        return Buffer((*shape, size), codec, self.device)

    def _make_cache(
        self,
        kv_layer: Callable[[tuple[KVHeads, ...]], Any],
        ring_layer: Callable[[RingBuffer], Any],
    ) -> Cache:
        """Return a cache with a layer for each of the model's that has keys and values."""
        layers: list[Any] = list(DynamicCache(config=self.layout.info.text_config).layers)
        for index, by_group in self.kv_heads.items():
            layers[index] = kv_layer(by_group)
        for index, ring in self.rings.items():
            layers[index] = ring_layer(ring)
        return Cache(layers=layers)
