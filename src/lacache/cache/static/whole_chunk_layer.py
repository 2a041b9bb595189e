"""A layer of the static cache in the prefill of a chunk whose keys keep their positions."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from lacache.cache.codecs import Codec, PlainCodec
from lacache.cache.static.attention import (
    Attend,
    ChunkStates,
    GroupedLayer,
    InPlaceAttention,
    VisibleKV,
    attends_twice,
)
from lacache.cache.static.decode_layers import DecodeSlots
from lacache.cache.static.kv_heads import KVHeads
from lacache.cache.static.whole_chunk import VisibleTokens, WholeChunk


@final
class WholeChunkLayer(GroupedLayer):
    """A layer under the policy in the prefill of one sequence's chunk.

    Its queries attend to the cached tokens and to the chunk's own, each to those that are there in
    its turn. The tokens that are left after the chunk are stored then, at once. `PrefillLayer` does
    the same compaction by compaction.
    """

    def __init__(
        self,
        attend: Attend,
        by_group: tuple[KVHeads, ...],
        chunk: WholeChunk,
        batch_slot: int,
        slots: DecodeSlots,
        in_place: InPlaceAttention | None,
        make_room: Callable[[], None],
    ) -> None:
        super().__init__(attend, by_group)
        self._visible = {heads.group: chunk.visible_to(heads) for heads in by_group}
        self._compacts = any(visible.tokens.compacts for visible in self._visible.values())
        self._batch_slot = batch_slot
        self._slots = slots
        self._in_place = in_place
        self._make_room = make_room
        self._new: tuple[Tensor, Tensor] | None = None
        self._moved_sinks: dict[int, Tensor] = {}

    def insert(self, keys: Tensor, values: Tensor) -> None:
        """Store the chunk's keys and values; where the layer compacts, hold them until it does."""
        self._make_room()
        self._new = keys, values
        if self._compacts:
            return
        for heads in self.by_group:
            start = self._visible[heads.group].tokens.num_before
            new = self.select(keys, heads), self.select(values, heads)
            heads.insert(self._batch_slot, start, *new)
        self._new = _none_of(keys), _none_of(values)

    def attend(self, module: nn.Module, query: Tensor, options: dict[str, Any]) -> Tensor:
        """Attend with each query to the tokens that are there in its turn."""
        self._moved_sinks = {heads.group: self._rotate_sinks(heads) for heads in self.by_group}
        output = self._attend_in_place(query, options)
        if output is None:
            output = super().attend(module, query, options)
        if self._compacts:
            self._store()
            self._new = None
            self._moved_sinks = {}
        return output

    def visible_kv(self, kv_heads: KVHeads) -> VisibleKV:
        """Return what any query sees, and which of it each does."""
        visible = self._visible[kv_heads.group]
        new_keys, new_values = self._new_of(kv_heads)
        num_stored = visible.tokens.num_before + visible.tokens.num_new - new_keys.shape[2]
        keys, values = (
            torch.cat(
                [
                    buffer.read(self._batch_slot, num_stored),
                    *(_as_stored(states, buffer.codec) for states in new),
                ],
                dim=2,
            )
            for buffer, new in (
                (kv_heads.keys, (new_keys, self._moved_sinks[kv_heads.group])),
                (kv_heads.values, (new_values,)),
            )
        )
        key_slots, value_slots, *_ = visible.table.long().T
        return keys[:, :, key_slots], values[:, :, value_slots], visible.mask

    def _new_of(self, heads: KVHeads) -> tuple[Tensor, Tensor]:
        """Return the keys and values of KV heads that are not stored yet."""
        keys, values = self._held()
        return self.select(keys, heads), self.select(values, heads)

    def _held(self) -> tuple[Tensor, Tensor]:
        """Return the keys and values [1, Hkv, Q, D] that are not stored yet."""
        if self._new is None:
            raise attends_twice()
        return self._new

    def _rotate_sinks(self, heads: KVHeads) -> Tensor:
        """Return the sinks' keys at each place that they get within the chunk [1, H, V * S, D]."""
        visible, stored = self._visible[heads.group], heads.unrotated_keys
        before, num_sinks = visible.tokens.num_before, heads.num_unrotated
        keys, _ = self._held()
        none = _none_of(keys[:, : len(heads.heads)])
        if stored is None or not visible.tokens.compacts:
            return none
        heads.save(self._batch_slot, visible.tokens.num_saved, before)
        if before < num_sinks:
            first = self.select(keys[:, :, : num_sinks - before], heads)
            stored.write(self._batch_slot, before, first)
        if visible.rotary_tables is None or heads.rotations is None:
            return none
        sinks = stored.read_wide(self._batch_slot, num_sinks)
        sinks = sinks.repeat(1, 1, len(visible.rotary_tables[0]) // num_sinks, 1)
        return heads.ops.rotate(sinks, *visible.rotary_tables, heads.rotations.partners)

    def _store(self) -> None:
        """Store the tokens that are left after the chunk."""
        first, visible = self._slots.first[self._batch_slot], self._by_head()
        moved, added = [each.moved for each in visible], [each.added for each in visible]
        ops = self.by_group[0].ops
        for states, new in zip((self._slots.keys, self._slots.values), self._held(), strict=True):
            encoded = states.codec.encode(new)
            for stored, tokens in zip(states.storage.flat, encoded, strict=True):
                ops.store_left(stored, first, moved, added, tokens[0])
        for heads in self.by_group:
            sinks = self._moved_sinks[heads.group]
            if sinks.shape[2]:
                heads.keys.write(self._batch_slot, 0, sinks[:, :, -heads.num_unrotated :])

    def _by_head(self) -> list[VisibleTokens]:
        """Return what the queries of each KV head see."""
        of_head = {
            head: self._visible[heads.group] for heads in self.by_group for head in heads.heads
        }
        return [of_head[head] for head in range(len(of_head))]

    def _attend_in_place(self, query: Tensor, options: dict[str, Any]) -> Tensor | None:
        """Attend in all head groups at once, if that is supported."""
        if self._in_place is None:
            return None
        new, visible = self._held(), self._by_head()
        moved = {
            head: sinks
            for heads in self.by_group
            for head, sinks in zip(
                heads.heads,
                _as_stored(self._moved_sinks[heads.group], heads.keys.codec)[0],
                strict=True,
            )
        }
        num_new = new[0].shape[2]
        num_stored = [each.tokens.num_before + each.tokens.num_new - num_new for each in visible]
        states = ChunkStates(
            *self._stored(num_stored),
            num_stored,
            (
                _as_stored(new[0], self._slots.keys.codec),
                _as_stored(new[1], self._slots.values.codec),
            ),
            [moved[head] for head in range(len(moved))],
            [each.table for each in visible],
        )
        return self._in_place.attend_chunk(query, states, options)

    def _stored(self, num_stored: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return stored keys and values [N, D], and the index of each head's first [Hkv]."""
        keys, values = self._slots.keys, self._slots.values
        if isinstance(keys.codec, PlainCodec):
            return keys.storage.flat[0], values.storage.flat[0], self._slots.first[self._batch_slot]
        read: dict[int, tuple[Tensor, Tensor]] = {}
        for heads in self.by_group:
            stop = num_stored[heads.heads[0]]
            both = (buffer.read(self._batch_slot, stop)[0] for buffer in (heads.keys, heads.values))
            read.update(zip(heads.heads, zip(*both, strict=True), strict=True))
        of_heads = zip(*(read[head] for head in range(len(read))), strict=True)
        all_keys, all_values = (torch.cat(states) for states in of_heads)
        stops = torch.tensor(num_stored, device=all_keys.device)
        return all_keys, all_values, stops.cumsum(0) - stops


def _as_stored(states: Tensor, codec: Codec) -> Tensor:
    """Return states [1, H, Q, D] as they are read once they are stored."""
    return codec.decode(codec.encode(states))


def _none_of(states: Tensor) -> Tensor:
    """Return no tokens of states [1, H, Q, D], which they do not keep in memory."""
    return states.new_empty(*states.shape[:2], 0, states.shape[3])
