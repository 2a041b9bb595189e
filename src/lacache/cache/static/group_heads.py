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
class _Copies:
    """Unrotated keys of KV heads that are rotated alike, in one storage."""

    rotations: Rotations
    storage: Storage
    num_slots: int
    """Slots of each head, where they are outside of the pool."""
    columns: Tensor
    """Of the heads, among all of the pool [H]."""
    patterns: Tensor
    """Of the heads [H]."""


@final
class GroupHeads:
    """KV heads of all layers that are in one head group and one pool.

    They are changed all at once: a call for each layer would take longer than the work.
    `KVHeads.apply` does the same, layer by layer.

    Args:
        pool: with the keys and values.
        kv_heads: of the group, by layer.
    """

    def __init__(self, pool: SlotPool, kv_heads: Sequence[tuple[int, KVHeads]]) -> None:
        self._pool = pool
        self._all = [heads for _, heads in kv_heads]
        self._device = pool.first_slots.device
        self._ops = self._all[0].ops
        self._columns, self._patterns = _places(pool, kv_heads)
        self._copies = _find_copies(pool, kv_heads)
        # Other codecs differ from layer to layer.
        self._at_once = all(isinstance(heads.keys.codec, PlainCodec) for heads in self._all)

    def apply(self, batch_slot: int, plan: GatherPlan) -> None:
        """Apply a gather plan to one batch slot."""
        if not self._at_once or plan.in_place is not None:
            shared = SharedPlan(plan, self._device, keeps_tables=True)
            for heads in self._all:
                shared.apply(heads, batch_slot)
            return
        first = self._pool.first_slots[batch_slot]
        for copies in self._copies:
            self._save(batch_slot, first, copies, plan)
        of_heads = first[self._columns]
        if plan.moves is not None:
            for storage in (self._pool.keys, self._pool.values):
                self._ops.move_few(storage.flat[0], of_heads, self._patterns, plan.moves)
        elif plan.surviving is not None:
            self._gather(of_heads, plan, plan.surviving)
        if plan.is_moved.any() or plan.moves is None:
            for copies in self._copies:
                self._rotate(batch_slot, first, copies, plan)

    def _save(self, batch_slot: int, first: Tensor, copies: _Copies, plan: GatherPlan) -> None:
        """Copy keys that may move and have no copy yet."""
        stop = min(plan.num_cached, copies.num_slots)
        if plan.num_saved < stop:
            slots = torch.arange(plan.num_saved, stop, device=self._device)
            target = self._first_copies(batch_slot, first, copies)[:, None] + slots
            keys = self._pool.keys.flat[0][first[copies.columns][:, None] + slots]
            copies.storage.flat[0][target] = keys

    def _gather(self, of_heads: Tensor, plan: GatherPlan, surviving: Tensor) -> None:
        """Move the slots that survive [patterns, N] to the front, in their order."""
        changed = torch.tensor(plan.first_changed)
        starts = {self._pool.values: changed, self._pool.keys: changed}
        if self._pool.unrotated_keys is not None:
            starts[self._pool.unrotated_keys] = changed
            # The keys before are rotated from there.
            after = torch.tensor([stop for _, stop in plan.to_rotate])
            starts[self._pool.keys] = changed.maximum(after)
        for storage, start in starts.items():
            stored = storage.flat[0]
            self._ops.gather_slots(stored, of_heads, self._patterns, surviving, start)

    def _rotate(self, batch_slot: int, first: Tensor, copies: _Copies, plan: GatherPlan) -> None:
        """Set keys that move to their copies, rotated to where they stand."""
        ranges = torch.tensor(plan.to_rotate)
        shifts = [of.narrow(0, a, b - a) for of, (a, b) in zip(plan.shifts, ranges, strict=True)]
        source = copies.storage.flat[0], self._first_copies(batch_slot, first, copies)
        self._ops.rotate_slots(
            self._pool.keys.flat[0],
            first[copies.columns],
            copies.patterns,
            source,
            ranges,
            copies.rotations.tables(torch.cat(shifts)),
            copies.rotations.partners,
        )

    def _first_copies(self, batch_slot: int, first: Tensor, copies: _Copies) -> Tensor:
        """Return the index of each head's first copy [H]."""
        if copies.storage is self._pool.unrotated_keys:
            return first[copies.columns]
        heads = torch.arange(len(copies.columns), device=self._device)
        return copies.num_slots * (batch_slot * len(heads) + heads)


def _places(pool: SlotPool, kv_heads: Sequence[tuple[int, KVHeads]]) -> tuple[Tensor, Tensor]:
    """Return the columns of KV heads in the pool [H], and their patterns [H]."""
    columns, patterns = [], []
    for layer, heads in kv_heads:
        of_layer = range(pool.columns(layer).start, pool.columns(layer).stop)
        columns += [of_layer[head] for head in heads.heads]
        patterns += [heads.pattern] * len(heads.heads)
    device = pool.first_slots.device
    return torch.tensor(columns, device=device), torch.tensor(patterns, device=device)


def _find_copies(pool: SlotPool, kv_heads: Sequence[tuple[int, KVHeads]]) -> list[_Copies]:
    alike: dict[tuple[Rotations, Storage, int], list[tuple[int, KVHeads]]] = {}
    for layer, heads in kv_heads:
        if heads.unrotated_keys is not None and heads.rotations is not None:
            key = heads.rotations, heads.unrotated_keys.storage, heads.num_unrotated
            alike.setdefault(key, []).append((layer, heads))
    return [
        _Copies(rotations, storage, num_slots, *_places(pool, those))
        for (rotations, storage, num_slots), those in alike.items()
    ]
