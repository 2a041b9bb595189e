"""A layer whose KV heads belong to several groups, and so hold different numbers of tokens."""

from typing import Any, final

from torch import LongTensor, Tensor

from lacache.cache.grouped_layer import GroupedLayer
from lacache.cache.layer import BoundedLayer
from lacache.errors import InputError


@final
class SplitLayer(GroupedLayer):
    """Stores each group's heads apart, and joins them for the attention of one forward.

    Heads with fewer tokens are filled up on the left; a mask hides the filling
    (`lacache.cache.masks`), which exists for one layer and one forward at a time.
    """

    def __init__(self, parts: dict[tuple[int, ...], BoundedLayer]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parts = parts

    @property
    def parts(self) -> tuple[BoundedLayer, ...]:
        """One for each group."""
        return tuple(self._parts.values())

    def key_lengths(self) -> tuple[int, ...]:
        """Keys that the open forward attends to, for each KV head."""
        lengths = {h: part.group.num_keys() for heads, part in self._parts.items() for h in heads}
        return tuple(lengths[head] for head in range(len(lengths)))

    def part_of(self, head: int | None) -> BoundedLayer:
        """Where a KV head is.

        Raises:
            InputError: no head given, or no such one.
        """
        for heads, part in self._parts.items():
            if head in heads:
                return part
        most = max(max(heads) for heads in self._parts)
        raise InputError(
            f"kv_head={head} must say which KV head of this layer is meant, as they hold different "
            f"tokens; try kv_head=0, up to {most}"
        )

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Each part does so for itself."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As BoundedLayer.update, with N the largest number of tokens that a head holds.

        Args:
            key_states: new keys [B, Hkv, Q, D], rotated by the model.
            value_states: new values [B, Hkv, Q, D].
            args: what models pass besides, and no cache needs.
            kwargs: likewise.

        Returns:
            Keys and values, each [B, Hkv, N + Q, D], zeros where a head holds fewer.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        seen = [
            (heads, *part.update(key_states[:, list(heads)], value_states[:, list(heads)]))
            for heads, part in self._parts.items()
        ]
        length = max(keys.shape[-2] for _, keys, _ in seen)
        batch, num_heads = key_states.shape[:2]
        joined_keys = key_states.new_zeros(batch, num_heads, length, key_states.shape[-1])
        joined_values = value_states.new_zeros(batch, num_heads, length, value_states.shape[-1])
        for heads, keys, values in seen:
            joined_keys[:, list(heads), length - keys.shape[-2] :] = keys
            joined_values[:, list(heads), length - values.shape[-2] :] = values
        return joined_keys, joined_values

    def reset(self) -> None:
        """Forget everything."""
        for part in self.parts:
            part.reset()
        self.is_initialized = False

    def reorder_cache(self, beam_idx: LongTensor) -> None:
        """Take the rows `beam_idx`, in that order, for beam search."""
        for part in self.parts:
            part.reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        for part in self.parts:
            part.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`."""
        for part in self.parts:
            part.batch_select_indices(indices)
