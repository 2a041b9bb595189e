"""Layers of the transformers cache: keys and values under a policy's schedule."""

from abc import ABC, abstractmethod
from typing import Any, NoReturn, final

import torch
from torch import LongTensor, Tensor
from transformers.cache_utils import CacheLayerMixin

from lacache.cache.layer_group import LayerGroup
from lacache.errors import InputError, UnsupportedOperationError
from lacache.models.rotary import Rotation


class EvictingLayer(CacheLayerMixin, ABC):
    """A layer that evicts tokens: a sequence of any length fits, and none can be cropped."""

    is_sliding = False

    def get_max_length(self) -> int:
        """Return -1, which is no limit."""
        return -1

    def get_max_cache_shape(self) -> int:
        """Return -1; older versions of transformers call `get_max_length` so."""
        return -1

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Raise UnsupportedOperationError, as evicted tokens cannot come back."""
        refuse_crop()


def refuse_crop() -> NoReturn:
    """Raise UnsupportedOperationError for any call that would remove the newest tokens."""
    raise UnsupportedOperationError(
        "taking tokens back (crop, assisted decoding, prompt lookup) needs tokens that a "
        "compaction may have evicted; leave assistant_model and prompt_lookup_num_tokens out, "
        "or use transformers' DynamicCache"
    )


class PolicyLayer(EvictingLayer, ABC):
    """A layer under the policy, with its KV heads in one head group or in several."""

    @property
    @abstractmethod
    def by_group(self) -> "tuple[BoundedLayer, ...]":
        """Return what is stored, one BoundedLayer for each head group."""

    @abstractmethod
    def key_lengths(self) -> tuple[int, ...]:
        """Return the number of keys in the open forward, for each KV head or one for all."""

    @abstractmethod
    def of_head(self, head: int | None) -> "BoundedLayer":
        """Return the BoundedLayer that stores a KV head.

        Raises:
            InputError: heads differ and none was given, or there is no such head.
        """

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return length and offset of the keys that `query_length` new tokens attend to.

        With several head groups these are the first one's; `lacache.cache.hooks` sets the masks.
        """
        return self.by_group[0].group.mask_sizes(query_length)

    def get_seq_length(self) -> int:
        """Return the number of tokens seen, which transformers counts positions from."""
        return self.by_group[0].group.state.num_seen


@final
class BoundedLayer(PolicyLayer):
    """Keys and values, each [B, Hkv, N, D], of one head group of a layer.

    Keys are stored as the model gave them, or where a compaction has renumbered them.

    Args:
        group: counts and positions of the head group.
        pattern: index of the layer's pattern in `group.patterns`.
        rotation: the layer's rotary embedding; None in a layer without positions.
    """

    def __init__(self, group: LayerGroup, pattern: int, rotation: Rotation | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.group = group
        self.pattern = pattern
        self._rotation = rotation

    @property
    def by_group(self) -> "tuple[BoundedLayer, ...]":
        """Return this layer, as all its KV heads are in one head group."""
        return (self,)

    def key_lengths(self) -> tuple[int, ...]:
        """Return the number of keys in the open forward, one for all KV heads."""
        return (self.group.num_keys(),)

    def of_head(self, head: int | None) -> "BoundedLayer":
        """Return this layer, which stores all its KV heads."""
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
        """Compact if it is due, insert, and return what the new tokens attend to.

        Args:
            key_states: new keys [B, Hkv, Q, D], rotated by the model.
            value_states: new values [B, Hkv, Q, D].
            args: ignored; models pass more than a cache needs.
            kwargs: ignored.

        Returns:
            Keys where they stand, and values, each [B, Hkv, N + Q, D].

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
        kept = self.group.renumbered(_select(self.keys, slots), self.pattern, self._rotation)
        self.keys = torch.cat([kept, key_states], dim=-2)
        self.values = torch.cat([_select(self.values, slots), value_states], dim=-2)
        return self.group.to_positions(self.keys, self.pattern, self._rotation), self.values

    def reset(self) -> None:
        """Remove all tokens, and free their memory."""
        self.keys = self.values = None
        self.is_initialized = False

    def kept_tokens(self) -> list[int]:
        """Return the tokens held, as indices into the sequence, in slot order."""
        return self.group.kept().by_pattern[self.group.patterns[self.pattern]]

    def num_stored(self) -> int:
        """Return the number of tokens in the tensors."""
        return 0 if self.keys is None else self.keys.shape[-2]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence of the batch `repeats` times."""
        if self.keys is not None and self.values is not None:
            self.keys = self.keys.repeat_interleave(repeats, dim=0)
            self.values = self.values.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences `indices` of the batch."""
        if self.keys is not None and self.values is not None:
            self.keys = self.keys[indices]
            self.values = self.values[indices]


@final
class SplitLayer(PolicyLayer):
    """A layer whose KV heads are in several head groups and hold different numbers of tokens.

    Each group's heads are stored apart and joined for the attention of one forward. Heads with
    fewer tokens are padded on the left, and a mask hides the padding (`lacache.cache.hooks`).
    """

    def __init__(self, by_heads: dict[tuple[int, ...], BoundedLayer]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._by_heads = by_heads

    @property
    def by_group(self) -> tuple[BoundedLayer, ...]:
        """Return what is stored, one BoundedLayer for each head group."""
        return tuple(self._by_heads.values())

    def key_lengths(self) -> tuple[int, ...]:
        """Return the number of keys in the open forward, for each KV head."""
        lengths = {h: one.group.num_keys() for heads, one in self._by_heads.items() for h in heads}
        return tuple(lengths[head] for head in range(len(lengths)))

    def of_head(self, head: int | None) -> BoundedLayer:
        """Return the BoundedLayer that stores a KV head.

        Raises:
            InputError: no head was given, or there is no such head.
        """
        for heads, one in self._by_heads.items():
            if head in heads:
                return one
        most = max(max(heads) for heads in self._by_heads)
        raise InputError(
            f"kv_head={head} must say which KV head of this layer is meant, as they hold different "
            f"tokens; try kv_head=0, up to {most}"
        )

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Note type and device; each BoundedLayer initializes its own tensors."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Update every head group, and join the results, padded to the longest.

        Args:
            key_states: new keys [B, Hkv, Q, D], rotated by the model.
            value_states: new values [B, Hkv, Q, D].
            args: ignored; models pass more than a cache needs.
            kwargs: ignored.

        Returns:
            Keys and values, each [B, Hkv, N + Q, D] for the longest head's N; zeros are padding.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        updated = [
            (heads, *one.update(key_states[:, list(heads)], value_states[:, list(heads)]))
            for heads, one in self._by_heads.items()
        ]
        length = max(keys.shape[-2] for _, keys, _ in updated)
        batch, num_heads = key_states.shape[:2]
        joined_keys = key_states.new_zeros(batch, num_heads, length, key_states.shape[-1])
        joined_values = value_states.new_zeros(batch, num_heads, length, value_states.shape[-1])
        for heads, keys, values in updated:
            joined_keys[:, list(heads), length - keys.shape[-2] :] = keys
            joined_values[:, list(heads), length - values.shape[-2] :] = values
        return joined_keys, joined_values

    def reset(self) -> None:
        """Remove all tokens, and free their memory."""
        for one in self.by_group:
            one.reset()
        self.is_initialized = False

    def reorder_cache(self, beam_idx: LongTensor) -> None:
        """Select the sequences `beam_idx`, in that order, for beam search."""
        for one in self.by_group:
            one.reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence of the batch `repeats` times."""
        for one in self.by_group:
            one.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences `indices` of the batch."""
        for one in self.by_group:
            one.batch_select_indices(indices)


def layer_bytes(keys: Tensor | None, values: Tensor | None) -> int:
    """Return the bytes of a layer's keys and values; 0 before the first token."""
    return sum(t.numel() * t.element_size() for t in (keys, values) if t is not None)


def _select(states: Tensor | None, slots: Tensor | None) -> Tensor:
    assert states is not None  # initialized by the caller
    return states if slots is None else states.index_select(-2, slots.to(states.device))
