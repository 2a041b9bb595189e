"""The KV heads of one head group in one pool, which a compaction changes all at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lacache.cache.codecs import PlainCodec
from lacache.cache.group_state import GatherPlan
from lacache.cache.static.kv_heads import KVHeads, Rotations, SharedPlan
from lacache.cache.static.pool import SlotPool
from lacache.cache.static.storage import Storage


@final
@dataclass(frozen=True)
class _Sinks:
    """KV heads whose first slots' keys are rotated alike, from copies in one storage."""

    rotations: Rotations
    unrotated: Storage
    num_slots: int
    columns: Tensor
    """Of the heads, among all of the pool [H]."""
    patterns: Tensor
    """Of the heads [H]."""


@final
class GroupHeads:
    """KV heads of all layers that are in one head group and one pool.

    Where a compaction moves few tokens, these are moved in all layers at once, and so are the sinks
    rotated: a call for each layer would take longer than the work. `KVHeads.apply` is the same,
    layer by layer.

    Args:
        pool: with the keys and values.
        kv_heads: of the group, by layer.
        moves_few: whether gather plans do; see `GroupState`.
    """

    def __init__(
        self, pool: SlotPool, kv_heads: Sequence[tuple[int, KVHeads]], *, moves_few: bool
    ) -> None:
        self._pool = pool
        self._all = [heads for _, heads in kv_heads]
        self._device = pool.first_slots.device
        self._ops = self._all[0].ops
        self._columns, self._patterns = _places(pool, kv_heads)
        self._sinks = _find_sinks(pool, kv_heads)
        # Other codecs differ from layer to layer, and where every key has a copy, it moves too.
        is_plain = all(isinstance(heads.keys.codec, PlainCodec) for heads in self._all)
        self._at_once = moves_few and is_plain and not pool.layout.unrotated

    def apply(self, batch_slot: int, plan: GatherPlan) -> None:
        """Apply a gather plan to one batch slot."""
        if not self._at_once or plan.in_place is not None:
            shared = SharedPlan(plan, self._device, keeps_tables=True)
            for heads in self._all:
                shared.apply(heads, batch_slot)
            return
        if plan.num_saved < plan.shifts.shape[1]:
            for heads in self._all:
                heads.save(batch_slot, plan.num_saved, plan.num_cached)
        first = self._pool.first_slots[batch_slot]
        if plan.moves is not None:
            of_heads = first[self._columns]
            for storage in (self._pool.keys, self._pool.values):
                for stored in storage.flat:
                    self._ops.move_few(stored, of_heads, self._patterns, plan.moves)
        if plan.is_moved.any():
            for sinks in self._sinks:
                self._rotate(batch_slot, first[sinks.columns], sinks, plan.shifts)

    def _rotate(self, batch_slot: int, first: Tensor, sinks: _Sinks, shifts: Tensor) -> None:
        """Set the sinks' keys to their copies, rotated by shifts [patterns, N]."""
        num_slots = min(sinks.num_slots, shifts.shape[1])
        keys = sinks.unrotated.tensors[0][batch_slot]
        keys = keys.view(-1, sinks.num_slots, keys.shape[-1])[:, :num_slots]
        tables = sinks.rotations.tables(shifts[:, :num_slots].flatten())
        cosines, sines = (t.view(-1, num_slots, keys.shape[-1]) for t in tables)
        stored, partners = self._pool.keys.flat[0], sinks.rotations.partners
        self._ops.rotate_first(stored, first, sinks.patterns, keys, (cosines, sines), partners)


def _places(pool: SlotPool, kv_heads: Sequence[tuple[int, KVHeads]]) -> tuple[Tensor, Tensor]:
    """Return the columns of KV heads in the pool [H], and their patterns [H]."""
    columns, patterns = [], []
    for layer, heads in kv_heads:
        of_layer = range(pool.columns(layer).start, pool.columns(layer).stop)
        columns += [of_layer[head] for head in heads.heads]
        patterns += [heads.pattern] * len(heads.heads)
    device = pool.first_slots.device
    return torch.tensor(columns, device=device), torch.tensor(patterns, device=device)


def _find_sinks(pool: SlotPool, kv_heads: Sequence[tuple[int, KVHeads]]) -> list[_Sinks]:
    alike: dict[tuple[Rotations, Storage, int], list[tuple[int, KVHeads]]] = {}
    for layer, heads in kv_heads:
        if heads.unrotated_keys is not None and heads.rotations is not None:
            key = heads.rotations, heads.unrotated_keys.storage, heads.num_unrotated
            alike.setdefault(key, []).append((layer, heads))
    return [
        _Sinks(rotations, storage, num_slots, *_places(pool, those))
        for (rotations, storage, num_slots), those in alike.items()
    ]
