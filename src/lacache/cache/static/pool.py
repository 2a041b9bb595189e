"""One pool of slots for the KV heads of all layers, whose regions grow, shrink and move."""

from collections.abc import Sequence
from itertools import accumulate
from typing import final

import torch

from lacache.cache.codecs import Codec
from lacache.cache.static.chunk_plan import SlotsInUse
from lacache.cache.static.compaction_ops import CompactionOps
from lacache.cache.static.layout import PoolLayout
from lacache.cache.static.storage import Buffer, Storage, moves_between

Region = tuple[int, int]
"""Index of the first slot of a member's first KV head, and the slots of each head."""


@final
class SlotPool:
    """Keys and values of KV heads whose keys, and whose values, have the same size.

    Each KV head has a region of adjacent slots. A head group's regions have equally many slots, and
    move when that number changes. The regions of each batch slot stand on their own.

    Args:
        layout: the KV heads, and the sizes.
        batch_size: batch slots, B.
        codecs: of the keys and values of each member.
        device: where the slots are allocated.
    """

    def __init__(
        self,
        layout: PoolLayout,
        batch_size: int,
        codecs: Sequence[tuple[Codec, Codec]],
        device: torch.device,
    ) -> None:
        def storage(codec: Codec, size: int) -> Storage:
            return Storage(batch_size, layout.num_slots, codec.parts(size), device)

        of_keys, of_values = codecs[0]
        self.layout = layout
        self.keys = storage(of_keys, layout.key_size)
        self.values = storage(of_values, layout.value_size)
        self.unrotated_keys = storage(of_keys, layout.key_size) if layout.unrotated else None
        self.buffers = [
            tuple(
                Buffer(each, len(member.heads), of_values if each is self.values else of_keys)
                for each in self.storages
            )
            for member, (of_keys, of_values) in zip(layout.members, codecs, strict=True)
        ]
        """For each member, its keys, its values and, where they are stored, unrotated keys."""
        heads = sorted((m.layer, head, m.group) for m in layout.members for head in m.heads)
        self._columns = {(layer, head): n for n, (layer, head, _) in enumerate(heads)}
        self.groups = torch.tensor([group for _, _, group in heads], device=device)
        """The head group of each KV head, layer by layer [T]."""
        self.first_slots = torch.zeros(batch_size, len(heads), dtype=torch.long, device=device)
        """In `Storage.flat`, the index of each KV head's first slot [B, T]."""
        self.last_indices = layout.num_slots * (1 + torch.arange(batch_size, device=device)) - 1
        """In `Storage.flat`, the last index of each batch slot [B]."""
        self._regions: list[list[Region]] = [[]] * batch_size

    @property
    def storages(self) -> tuple[Storage, ...]:
        """Keys, values and, where they are stored, unrotated keys."""
        unrotated = () if self.unrotated_keys is None else (self.unrotated_keys,)
        return (self.keys, self.values, *unrotated)

    def columns(self, layer: int) -> slice:
        """Return where a layer's KV heads are in the tensors [B, T], in their order."""
        mine = [column for (index, _), column in self._columns.items() if index == layer]
        return slice(mine[0], mine[-1] + 1)

    def place(self, batch_slot: int, num_slots: Sequence[int]) -> None:
        """Lay out the regions of a batch slot anew, with `num_slots` for each head group."""
        self._place(batch_slot, self._packed([num_slots[m.group] for m in self.layout.members]))

    def resize(
        self,
        batch_slot: int,
        num_slots: Sequence[int],
        num_cached: Sequence[int],
        ops: CompactionOps,
    ) -> None:
        """Move the regions of a batch slot to where `place` lays them out.

        Args:
            batch_slot: the batch slot.
            num_slots: slots of each head group's KV heads from now on.
            num_cached: slots in use, for each head group.
            ops: what moves the slots.
        """
        members = self.layout.members
        regions = self._packed([num_slots[member.group] for member in members])
        self._move(batch_slot, regions, [num_cached[member.group] for member in members], ops)

    def fits(self, use: SlotsInUse) -> bool:
        """Return whether every layer has room in its turn, where a chunk moves regions."""
        members = self.layout.members
        return all(
            sum(n * len(m.heads) for n, m in zip(self._at_layer(layer, use), members, strict=True))
            <= self.layout.num_slots
            for layer in {member.layer for member in members}
        )

    def enter(self, batch_slot: int, layer: int, use: SlotsInUse, ops: CompactionOps) -> None:
        """Move regions apart, so that those of a layer have room for what a chunk stores.

        Layers before it are done, and stand at the front. Those after it stand at the end.

        Args:
            batch_slot: the batch slot.
            layer: index of the layer, entered in increasing order; -1 is before all of them.
            use: slots in use of each head group.
            ops: what moves the slots.
        """
        members = self.layout.members
        sizes = self._at_layer(layer, use)
        packed = self._packed(sizes)
        used = sum(size * len(member.heads) for size, member in zip(sizes, members, strict=True))
        gap = self.layout.num_slots - used
        regions = [
            (start + gap * (member.layer > layer), size)
            for (start, size), member in zip(packed, members, strict=True)
        ]
        in_use = [(use.after if m.layer < layer else use.before)[m.group] for m in members]
        self._move(batch_slot, regions, in_use, ops)

    def _at_layer(self, layer: int, use: SlotsInUse) -> list[int]:
        """Return the slots that each member's KV heads need while a layer attends."""
        return [
            (use.after if m.layer < layer else use.before if m.layer > layer else use.most)[m.group]
            for m in self.layout.members
        ]

    def _packed(self, sizes: Sequence[int]) -> list[Region]:
        """Return regions side by side, with so many slots for each member's KV heads."""
        members = self.layout.members
        totals = [size * len(member.heads) for size, member in zip(sizes, members, strict=True)]
        *starts, used = accumulate(totals, initial=0)
        assert used <= self.layout.num_slots
        return list(zip(starts, sizes, strict=True))

    def _move(
        self,
        batch_slot: int,
        regions: list[Region],
        in_use: Sequence[int],
        ops: CompactionOps,
    ) -> None:
        """Move each member's regions, with so many slots in use."""
        if self._regions[batch_slot] == regions:
            return
        before, after = (self._by_head(r) for r in (self._regions[batch_slot], regions))
        members = self.layout.members
        lengths = [n for n, member in zip(in_use, members, strict=True) for _ in member.heads]
        moves = torch.tensor(moves_between(before, after, lengths), dtype=torch.long).view(-1, 3)
        for storage in self.storages:
            for stored in storage.tensors:
                ops.move(stored[batch_slot], moves)
        self._place(batch_slot, regions)

    def _place(self, batch_slot: int, regions: list[Region]) -> None:
        before = self._regions[batch_slot]
        if before == regions:
            return
        for number, buffers in enumerate(self.buffers):
            if before[number : number + 1] != regions[number : number + 1]:
                for buffer in buffers:
                    buffer.place(batch_slot, *regions[number])
        columns = [self._columns[m.layer, head] for m in self.layout.members for head in m.heads]
        first = torch.empty(len(columns), dtype=torch.long)
        first[columns] = batch_slot * self.layout.num_slots + torch.tensor(self._by_head(regions))
        self.first_slots[batch_slot] = first.to(self.first_slots.device)
        self._regions[batch_slot] = regions

    def _by_head(self, regions: Sequence[Region]) -> list[int]:
        """Return the index of each KV head's first slot, in the order of the regions."""
        return [
            start + number * size
            for (start, size), member in zip(regions, self.layout.members, strict=True)
            for number in range(len(member.heads))
        ]
