"""A layer whose KV heads are in several head groups."""

from typing import Any, final

from torch import LongTensor, Tensor

from lacache.cache.layers import BoundedLayer, PolicyLayer
from lacache.errors import InputError


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

    @property
    def num_bytes(self) -> int:
        """Bytes of the stored keys and values of all head groups."""
        return sum(one.num_bytes for one in self.by_group)

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

    def offload(self) -> None:
        """Move keys and values to the CPU as they are stored."""
        for one in self.by_group:
            one.offload()

    def prefetch(self) -> None:
        """Move keys and values back to the layer's device."""
        for one in self.by_group:
            one.prefetch()
