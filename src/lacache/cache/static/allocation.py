"""Allocation of a static cache's buffers, as its layout describes them."""

import sys
from collections.abc import Sequence

import torch

from lacache.cache.codecs import Codec, find_codecs
from lacache.cache.group_state import CompactionTables
from lacache.cache.static.compaction_ops import CompactionOps
from lacache.cache.static.kv_heads import KVHeads, Rotations
from lacache.cache.static.layout import CacheLayout, Member, num_unrotated
from lacache.cache.static.pool import SlotPool
from lacache.cache.static.rings import RingBuffer
from lacache.cache.static.storage import Buffer, Storage
from lacache.common.validation import physical_bytes
from lacache.errors import ConfigError
from lacache.models.rotary import Rotation


def layer_codecs(
    layout: CacheLayout, device: torch.device, index: int, heads: tuple[int, ...] | None = None
) -> tuple[Codec, Codec]:
    """Return the codecs of keys and values of some KV heads of a layer; None is all."""
    info = layout.info
    [center] = (layer.key_center for layer in info.growing if layer.index == index)
    if center is not None and heads is not None:
        center = center[list(heads)]
    return find_codecs(layout.kv_dtype, info.dtype, device, center)


def allocate_buffers(
    layout: CacheLayout,
    tables: Sequence[CompactionTables],
    batch_size: int,
    ops: CompactionOps,
    device: torch.device,
) -> tuple[list[SlotPool], dict[int, tuple[KVHeads, ...]], dict[int, RingBuffer]]:
    """Return the pools, the KV heads of each layer under the policy, and rings of the others.

    Args:
        layout: the layers and head groups.
        tables: of each head group.
        batch_size: batch slots, B.
        ops: the operations of compactions.
        device: where the buffers are allocated.

    Raises:
        ConfigError: the buffers do not fit in memory.
    """
    needed = batch_size * layout.bytes_per_sequence
    try:
        # Some systems promise more than they have, and kill the process that uses it.
        most = physical_bytes() if device.type == "cpu" else sys.maxsize
        if needed > most:
            raise MemoryError(f"{most:,} bytes are there")
        pools = [
            SlotPool(
                pool,
                batch_size,
                [layer_codecs(layout, device, m.layer, m.heads) for m in pool.members],
                device,
            )
            for pool in layout.pools
        ]
        kv_heads = _allocate_kv_heads(layout, pools, tables, batch_size, ops, device)
        rings = {
            layer.index: RingBuffer(layer, batch_size, layout.info.dtype, device)
            for layer in layout.info.sliding
        }
    except (RuntimeError, MemoryError, OverflowError) as error:
        raise ConfigError(
            f"max_sequences={batch_size} of {layout.bytes_per_sequence:,} bytes each need "
            f"{needed:,} bytes, which could not be allocated on {device}; try fewer sequences "
            "or a smaller budget"
        ) from error
    return pools, kv_heads, rings


def _allocate_kv_heads(
    layout: CacheLayout,
    pools: Sequence[SlotPool],
    tables: Sequence[CompactionTables],
    batch_size: int,
    ops: CompactionOps,
    device: torch.device,
) -> dict[int, tuple[KVHeads, ...]]:
    """Return the KV heads of each layer by head group, and allocate what is outside of pools."""
    # Sinks soon move farther than any table reaches.
    slots = [t.schedule for t in tables if t.schedule.positions == "slots"]
    reach = max((schedule.capacity - 1 for schedule in slots), default=0)
    rotations: dict[tuple[Rotation, int], Rotations] = {}
    made: dict[int, tuple[KVHeads, ...]] = {}
    depths = {layer.index: depth for depth, layer in enumerate(layout.info.growing)}
    for pool in pools:
        sinks = _allocate_sinks(layout, pool, batch_size, device)
        for member, (keys, values, *in_pool) in zip(pool.layout.members, pool.buffers, strict=True):
            depth, bound = depths[member.layer], layout.bound.groups[member.group]
            layer, schedule = layout.info.growing[depth], bound.schedule
            rotation = layer.rotation
            if rotation is not None and (rotation, layer.key_size) not in rotations:
                rotations[rotation, layer.key_size] = Rotations(
                    rotation, layer.key_size, reach, device
                )
            kv_heads = KVHeads(
                group=member.group,
                heads=member.heads,
                pattern=tables[member.group].patterns.index(bound.pattern(depth)),
                keys=keys,
                values=values,
                unrotated_keys=in_pool[0] if in_pool else sinks.get(member),
                num_unrotated=num_unrotated(layer, schedule),
                rotations=None if rotation is None else rotations[rotation, layer.key_size],
                ops=ops,
            )
            made[layer.index] = (*made.get(layer.index, ()), kv_heads)
    return made


def _allocate_sinks(
    layout: CacheLayout, pool: SlotPool, batch_size: int, device: torch.device
) -> dict[Member, Buffer]:
    """Return the unrotated keys of a pool's sinks, one storage for those that are rotated alike."""
    layers = {layer.index: layer for layer in layout.info.growing}
    alike: dict[tuple[int, Rotation], list[tuple[Member, Codec, int]]] = {}
    for member, (keys, *_) in zip(pool.layout.members, pool.buffers, strict=True):
        layer = layers[member.layer]
        num_slots = layout.num_apart(layer, layout.bound.groups[member.group].schedule)
        if num_slots and layer.rotation is not None:
            found = alike.setdefault((member.group, layer.rotation), [])
            found.append((member, keys.codec, num_slots * len(member.heads)))
    buffers: dict[Member, Buffer] = {}
    for members in alike.values():
        parts = members[0][1].parts(pool.layout.key_size)
        storage = Storage(batch_size, sum(n for *_, n in members), parts, device)
        start = 0
        for member, codec, num_slots in members:
            buffer = buffers[member] = Buffer(storage, len(member.heads), codec)
            for batch_slot in range(batch_size):
                buffer.place(batch_slot, start, num_slots // len(member.heads))
            start += num_slots
    return buffers
