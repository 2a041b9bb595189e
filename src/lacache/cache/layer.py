"""The keys and values of a layer, or of some of its KV heads, of bounded length."""

from typing import Any, final

import torch
from torch import Tensor

from lacache.cache.group import LayerGroup
from lacache.cache.grouped_layer import GroupedLayer
from lacache.models.rotary import Rotation


@final
class BoundedLayer(GroupedLayer):
    """Holds keys as they came in and values, each [B, Hkv, N, D]; its group says which."""

    def __init__(self, group: LayerGroup, pattern: int, rotation: Rotation | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.group = group
        self.pattern = pattern
        self._rotation = rotation

    @property
    def parts(self) -> "tuple[BoundedLayer, ...]":
        """Itself, as all its KV heads are in one group."""
        return (self,)

    def key_lengths(self) -> tuple[int, ...]:
        """Keys that the open forward attends to: one number, the same for all KV heads."""
        return (self.group.num_keys(),)

    def part_of(self, head: int | None) -> "BoundedLayer":
        """Where a KV head is: itself."""
        return self

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Start empty, with the shapes, type and device of the first keys and values."""
        self.keys = key_states[:, :, :0]
        self.values = value_states[:, :, :0]
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Compact if the group says so, insert, and return what the new tokens attend to.

        Args:
            key_states: new keys [B, Hkv, Q, D], rotated by the model.
            value_states: new values [B, Hkv, Q, D].
            args: what models pass besides, and no cache needs.
            kwargs: likewise.

        Returns:
            Keys, rotated to their slots, and values, each [B, Hkv, N + Q, D].

        Raises:
            UnsupportedOperationError: called outside of the model's forward.
        """
        self.group.touch()
        if self.keys is None or self.values is None:
            self.lazy_initialization(key_states, value_states)
        slots = self.group.surviving_slots(self.pattern)
        if self.group.is_dense:
            self.keys = _select(key_states, slots)
            self.values = _select(value_states, slots)
            return key_states, value_states
        self.keys = torch.cat([_select(self.keys, slots), key_states], dim=-2)
        self.values = torch.cat([_select(self.values, slots), value_states], dim=-2)
        return self.group.to_slots(self.keys, self.pattern, self._rotation), self.values

    def reset(self) -> None:
        """Forget everything."""
        self.keys = self.values = None
        self.is_initialized = False

    def num_stored(self) -> int:
        """Tokens held now."""
        return 0 if self.keys is None else self.keys.shape[-2]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        if self.keys is not None and self.values is not None:
            self.keys = self.keys.repeat_interleave(repeats, dim=0)
            self.values = self.values.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`."""
        if self.keys is not None and self.values is not None:
            self.keys = self.keys[indices]
            self.values = self.values[indices]


def layer_bytes(keys: Tensor | None, values: Tensor | None) -> int:
    """Bytes of a layer's keys and values; nothing before the first token."""
    return sum(t.numel() * t.element_size() for t in (keys, values) if t is not None)


def _select(states: Tensor | None, slots: Tensor | None) -> Tensor:
    assert states is not None  # initialized by the caller
    return states if slots is None else states.index_select(-2, slots.to(states.device))
