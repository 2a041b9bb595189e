"""One pool of slots for the KV heads of all layers, whose regions grow, shrink and move."""

from collections.abc import Sequence
from itertools import accumulate
from typing import final

import torch

from lacache.cache.codecs import Codec
from lacache.cache.static.compaction_ops import CompactionOps
from lacache.cache.static.layout import PoolLayout
from lacache.cache.static.storage import Buffer, Storage, moves_between


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
        self._num_slots: list[tuple[int, ...]] = [()] * batch_size

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
        if self._num_slots[batch_slot] == tuple(num_slots):
            return
        used = sum(num_slots[m.group] * len(m.heads) for m in self.layout.members)
        assert used <= self.layout.num_slots
        starts = self._starts(num_slots)
        for member, buffers, start in zip(self.layout.members, self.buffers, starts, strict=True):
            for buffer in buffers:
                buffer.place(batch_slot, start, num_slots[member.group])
        columns = [self._columns[m.layer, head] for m in self.layout.members for head in m.heads]
        first = torch.empty(len(columns), dtype=torch.long)
        first[columns] = batch_slot * self.layout.num_slots + torch.tensor(self._by_head(num_slots))
        self.first_slots[batch_slot] = first.to(self.first_slots.device)
        self._num_slots[batch_slot] = tuple(num_slots)

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
        if self._num_slots[batch_slot] == tuple(num_slots):
            return
        before, after = (self._by_head(slots) for slots in (self._num_slots[batch_slot], num_slots))
        lengths = [num_cached[member.group] for member in self.layout.members for _ in member.heads]
        moves = torch.tensor(moves_between(before, after, lengths), dtype=torch.long).view(-1, 3)
        for storage in self.storages:
            for stored in storage.tensors:
                ops.move(stored[batch_slot], moves)
        self.place(batch_slot, num_slots)

    def _starts(self, num_slots: Sequence[int]) -> list[int]:
        """Return the index of each member's first slot."""
        sizes = [len(member.heads) * num_slots[member.group] for member in self.layout.members]
        return [0, *accumulate(sizes)][:-1]

    def _by_head(self, num_slots: Sequence[int]) -> list[int]:
        """Return the index of each KV head's first slot, in the order of the regions."""
        return [
            start + number * num_slots[member.group]
            for member, start in zip(self.layout.members, self._starts(num_slots), strict=True)
            for number in range(len(member.heads))
        ]
