"""What a model sees of the buffers in one forward: a cache layer that attends by itself."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from lacache.cache.layers import EvictingLayer
from lacache.cache.static.attention import Attend
from lacache.cache.static.part import Part
from lacache.cache.static.sliding import Ring
from lacache.errors import UnsupportedOperationError

Seen = tuple[Tensor, Tensor, Tensor | None]
"""Keys and values [B, H, N, D], and which of them are visible, bool [B or 1, 1, 1 or Q, N]."""


class AttendingLayer(EvictingLayer, ABC):
    """Takes new keys and values, and attends to them and to those it has."""

    is_compileable = True

    def __init__(self, attend: Attend) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._attend = attend
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Insert, and give itself as what to attend to; `attention.NAME` must be the function.

        Args:
            key_states: new keys [B, Hkv, Q, D], rotated by the model.
            value_states: new values [B, Hkv, Q, D].
            args: what models pass besides, and no cache needs.
            kwargs: likewise.
        """
        self.insert(key_states, value_states)
        return self, self

    @abstractmethod
    def insert(self, keys: Tensor, values: Tensor) -> None:
        """Add new keys and values [B, Hkv, Q, D]."""

    @abstractmethod
    def attend(self, module: nn.Module, query: Tensor, options: dict[str, Any]) -> Tensor:
        """What queries [B, Hq, Q, D] find [B, Hq, Q, D]."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the buffers are there."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Not asked for, since attention makes its own masks."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Not asked for, since positions are always given."""
        return 0


class PartedLayer(AttendingLayer, ABC):
    """One whose KV heads are in one or several parts."""

    def __init__(self, attend: Attend, parts: tuple[Part, ...]) -> None:
        super().__init__(attend)
        self.parts = parts

    @abstractmethod
    def seen(self, part: Part) -> Seen:
        """What the heads of a part attend to."""

    def of_part(self, states: Tensor, part: Part) -> Tensor:
        """The heads of a part among states [B, Hkv, Q, D]."""
        return states if len(self.parts) == 1 else states[:, list(part.heads)]

    def attend(self, module: nn.Module, query: Tensor, options: dict[str, Any]) -> Tensor:
        """Attend part by part, and put the heads in their places."""
        if len(self.parts) == 1:
            keys, values, visible = self.seen(self.parts[0])
            return self._attend(module, query, keys, values, visible, options)
        if options.get("s_aux") is not None:
            raise UnsupportedOperationError(
                "the model's attention has a number for each head, which KV heads in different "
                "groups cannot share; use groups of whole layers"
            )
        num_heads = sum(len(part.heads) for part in self.parts)
        batch, num_queries, num_new, size = query.shape
        by_head = query.reshape(batch, num_heads, num_queries // num_heads, num_new, size)
        found: dict[int, Tensor] = {}
        for part in self.parts:
            keys, values, visible = self.seen(part)
            mine = by_head[:, list(part.heads)].flatten(1, 2)
            output = self._attend(module, mine, keys, values, visible, options)
            found.update(zip(part.heads, output.chunk(len(part.heads), dim=1), strict=True))
        return torch.cat([found[head] for head in range(num_heads)], dim=1)


@final
@dataclass(frozen=True)
class StepInputs:
    """Where each row of a decode step stands; tensors that are set anew before each step."""

    positions: Tensor
    """[B, 1]."""
    active: Tensor
    """Rows that bring a token, bool [B]; the others compute in vain and change nothing."""
    slots: tuple[Tensor, ...]
    """For each group, the slot of the new token [B]."""
    visible: tuple[Tensor, ...]
    """For each group, bool [B, 1, 1, C]."""
    ring_slots: dict[int, Tensor]
    """For each length of a window, the slot of the new token [B]."""
    ring_visible: dict[int, Tensor]
    """For each length of a window, bool [B, 1, 1, W]."""


@final
class StepLayer(PartedLayer):
    """One new token in each row: always the same shapes."""

    def __init__(self, attend: Attend, parts: tuple[Part, ...], inputs: StepInputs) -> None:
        super().__init__(attend, parts)
        self._inputs = inputs

    def insert(self, keys: Tensor, values: Tensor) -> None:
        """Add a key and a value to each active row."""
        for part in self.parts:
            slots = self._inputs.slots[part.group]
            part.insert_one(
                slots, self._inputs.active, self.of_part(keys, part), self.of_part(values, part)
            )

    def seen(self, part: Part) -> Seen:
        """Every slot, those in use visible."""
        return part.keys.all(), part.values.all(), self._inputs.visible[part.group]


@final
class StepRing(AttendingLayer):
    """One new token in each row of a layer with a window."""

    def __init__(self, attend: Attend, ring: Ring, inputs: StepInputs) -> None:
        super().__init__(attend)
        self._ring = ring
        self._inputs = inputs

    def insert(self, keys: Tensor, values: Tensor) -> None:
        """Add a key and a value to each active row, over the oldest."""
        slots = self._inputs.ring_slots[self._ring.window]
        self._ring.keys.write_one(slots, self._inputs.active, keys)
        self._ring.values.write_one(slots, self._inputs.active, values)

    def attend(self, module: nn.Module, query: Tensor, options: dict[str, Any]) -> Tensor:
        """Attend to the ring."""
        visible = self._inputs.ring_visible[self._ring.window]
        keys, values = self._ring.keys.all(), self._ring.values.all()
        return self._attend(module, query, keys, values, visible, options)


@final
class ReadLayer(PartedLayer):
    """A segment of one row's prompt."""

    def __init__(
        self,
        attend: Attend,
        parts: tuple[Part, ...],
        masks: "CausalMasks",
        row: int,
        num_cached: tuple[int, ...],
    ) -> None:
        super().__init__(attend, parts)
        self._masks = masks
        self._row = row
        self._num_cached = num_cached
        self._num_new = 0

    def insert(self, keys: Tensor, values: Tensor) -> None:
        """Add the segment's keys and values."""
        self._num_new = keys.shape[2]
        for part in self.parts:
            slot = self._num_cached[part.group]
            part.insert(self._row, slot, self.of_part(keys, part), self.of_part(values, part))

    def seen(self, part: Part) -> Seen:
        """The slots in use; of the new ones those that came earlier."""
        before = self._num_cached[part.group]
        stop = before + self._num_new
        keys, values = part.keys.read(self._row, stop), part.values.read(self._row, stop)
        return keys, values, self._masks.find(self._num_new, stop, stop)


@final
class ReadRing(AttendingLayer):
    """A segment of one row's prompt, in a layer with a window.

    The segment is stored by `keep`, after the forward: it goes over tokens that a forward which is
    made again still has to see.
    """

    def __init__(
        self, attend: Attend, ring: Ring, masks: "CausalMasks", row: int, num_seen: int
    ) -> None:
        super().__init__(attend)
        self._masks = masks
        self._ring = ring
        self._row = row
        self._num_seen = num_seen
        self._new: tuple[Tensor, Tensor] | None = None

    def insert(self, keys: Tensor, values: Tensor) -> None:
        """Take the segment's keys and values."""
        self._new = keys, values

    def attend(self, module: nn.Module, query: Tensor, options: dict[str, Any]) -> Tensor:
        """Attend to the window before each token."""
        assert self._new is not None  # inserted just before
        old = self._ring.before(self._row, self._num_seen)
        keys, values = (torch.cat(states, dim=2) for states in zip(old, self._new, strict=True))
        visible = self._masks.find(query.shape[2], keys.shape[2], self._ring.window)
        return self._attend(module, query, keys, values, visible, options)

    def keep(self) -> None:
        """Store the segment."""
        assert self._new is not None  # the forward went through every layer
        self._ring.insert(self._row, self._num_seen, *self._new)


@final
class CausalMasks:
    """Those of one forward, whose layers ask for the same few."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._made: dict[tuple[int, int, int], Tensor] = {}

    def find(self, num_new: int, num_keys: int, window: int) -> Tensor | None:
        """Which keys, in order of the text, each new token sees.

        Returns:
            bool [1, 1, Q, N]; None for all.
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
