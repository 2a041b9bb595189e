"""Layers of the transformers cache: keys and values under a policy's schedule."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NoReturn, final

from torch import LongTensor, Tensor
from transformers.cache_utils import CacheLayerMixin

from lacache.cache.codecs import Codec, find_codecs
from lacache.cache.encoded import EncodedStates
from lacache.cache.layer_group import LayerGroup
from lacache.errors import UnsupportedOperationError
from lacache.models.rotary import Rotation


class EvictingLayer(CacheLayerMixin, ABC):
    """A layer that evicts tokens: a sequence of any length fits, and none can be cropped."""

    is_sliding = False

    @property
    def num_bytes(self) -> int:
        """Bytes of the keys and values that the layer itself stores."""
        return 0

    def get_max_length(self) -> int:
        """Return -1, which is no limit."""
        return -1

    def get_max_cache_shape(self) -> int:
        """Return -1; older versions of transformers call `get_max_length` so."""
        return -1

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Raise UnsupportedOperationError, as evicted tokens cannot come back."""
        refuse_crop()


class StoringLayer(EvictingLayer, ABC):
    """A layer that stores keys and values, each in the format of a codec.

    Args:
        kv_dtype: what they are stored in; None is the type that the model gives them in.
        key_center: what the keys have in common, float32 [H, D]; see `find_key_center`.
    """

    def __init__(self, kv_dtype: str | None, key_center: Tensor | None = None) -> None:
        self._kv_dtype = kv_dtype
        self._key_center = key_center
        self.stored_keys: EncodedStates | None = None
        """Keys [B, H, N, D]; None before the first token."""
        self.stored_values: EncodedStates | None = None
        self._codecs: tuple[Codec, Codec] | None = None  # until the first keys show their type
        super().__init__()  # type: ignore[no-untyped-call]

    @property
    def keys(self) -> Tensor | None:
        """The stored keys [B, H, N, D], decoded; None before the first token."""
        return None if self.stored_keys is None else self.stored_keys.decode()

    @keys.setter
    def keys(self, keys: Tensor | None) -> None:
        self.stored_keys = None if keys is None else self.encode(keys, keys)[0]

    @property
    def values(self) -> Tensor | None:
        """The stored values [B, H, N, D], decoded; None before the first token."""
        return None if self.stored_values is None else self.stored_values.decode()

    @values.setter
    def values(self, values: Tensor | None) -> None:
        self.stored_values = None if values is None else self.encode(values, values)[1]

    @property
    def num_bytes(self) -> int:
        """Bytes of the stored keys and values; 0 before the first token."""
        stored = (self.stored_keys, self.stored_values)
        return sum(states.num_bytes for states in stored if states is not None)

    def encode(self, keys: Tensor, values: Tensor) -> tuple[EncodedStates, EncodedStates]:
        """Return keys and values [B, H, N, D] in the format that they are stored in."""
        if self._codecs is None:
            self._codecs = find_codecs(self._kv_dtype, keys.dtype, keys.device, self._key_center)
        key_codec, value_codec = self._codecs
        return EncodedStates.encode(keys, key_codec), EncodedStates.encode(values, value_codec)

    def num_stored(self) -> int:
        """Return the number of tokens that the layer stores."""
        return 0 if self.stored_keys is None else self.stored_keys.num_slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Start empty, with the shapes, type and device of the first keys and values."""
        empty = self.encode(key_states[:, :, :0], value_states[:, :, :0])
        self.stored_keys, self.stored_values = empty
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def reset(self) -> None:
        """Remove all tokens, and free their memory."""
        self.stored_keys = self.stored_values = None
        self._codecs = None
        self.is_initialized = False

    def reorder_cache(self, beam_idx: LongTensor) -> None:
        """Select the sequences `beam_idx`, in that order, for beam search."""
        self._change(lambda stored: stored.index_select(0, beam_idx.to(stored.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence of the batch `repeats` times."""
        self._change(lambda stored: stored.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences `indices` of the batch."""
        self._change(lambda stored: stored[indices])

    def offload(self) -> None:
        """Move keys and values to the CPU as they are stored."""
        self._change(lambda stored: stored.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        """Move keys and values back to the layer's device."""
        self._change(lambda stored: stored.to(self.device, non_blocking=True))

    def _change(self, change: Callable[[Tensor], Tensor]) -> None:
        """Change every stored tensor [B, H, N, W]."""
        if self.stored_keys is not None and self.stored_values is not None:
            self.stored_keys = self.stored_keys.map(change)
            self.stored_values = self.stored_values.map(change)


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
class BoundedLayer(StoringLayer, PolicyLayer):
    """Keys and values, each [B, Hkv, N, D], of one head group of a layer.

    Keys are stored as the model gave them, or where a compaction has renumbered them. The new
    tokens, too, attend to what is stored, so that a text does not depend on how it was cut.

    Args:
        group: counts and positions of the head group.
        pattern: index of the layer's pattern in `group.patterns`.
        rotation: the layer's rotary embedding; None in a layer without positions.
        kv_dtype: what keys and values are stored in; None is the model's own type.
        key_center: what the keys have in common, float32 [H, D]; see `find_key_center`.
    """

    def __init__(
        self,
        group: LayerGroup,
        pattern: int,
        rotation: Rotation | None,
        kv_dtype: str | None = None,
        key_center: Tensor | None = None,
    ) -> None:
        super().__init__(kv_dtype, key_center)
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
            Keys where they stand, and values, each [B, Hkv, N + Q, D], decoded.

        Raises:
            UnsupportedOperationError: called outside of the model's forward.
        """
        self.group.touch()
        if self.stored_keys is None or self.stored_values is None:
            self.lazy_initialization(key_states, value_states)
        assert self.stored_keys is not None
        assert self.stored_values is not None
        new_keys, new_values = self.encode(key_states, value_states)
        slots = self.group.surviving_slots(self.pattern)
        if self.group.is_dense:
            self.stored_keys, self.stored_values = new_keys.select(slots), new_values.select(slots)
            return new_keys.decode(), new_values.decode()
        kept = self.group.renumbered(self.stored_keys.select(slots), self.pattern, self._rotation)
        self.stored_keys = kept.append(new_keys)
        self.stored_values = self.stored_values.select(slots).append(new_values)
        keys = self.group.to_positions(self.stored_keys, self.pattern, self._rotation)
        return keys, self.stored_values.decode()

    def kept_tokens(self) -> list[int]:
        """Return the tokens held, as indices into the sequence, in slot order."""
        return self.group.kept().by_pattern[self.group.patterns[self.pattern]]


def layer_bytes(layer: CacheLayerMixin) -> int:
    """Return the bytes of a layer's keys and values; 0 before the first token."""
    if isinstance(layer, EvictingLayer):
        return layer.num_bytes
    return sum(t.numel() * t.element_size() for t in (layer.keys, layer.values) if t is not None)


def refuse_crop() -> NoReturn:
    """Raise UnsupportedOperationError for any call that would remove the newest tokens."""
    raise UnsupportedOperationError(
        "taking tokens back (crop, assisted decoding, prompt lookup) needs tokens that a "
        "compaction may have evicted; leave assistant_model and prompt_lookup_num_tokens out, "
        "or use transformers' DynamicCache"
    )
