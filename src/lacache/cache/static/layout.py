"""The layout of a static cache's buffers, and the bytes that they take."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch

from lacache.cache.codecs import find_codecs
from lacache.common.validation import validate_kv_dtype
from lacache.errors import ConfigError, UnsupportedModelError, UnsupportedOperationError
from lacache.models.model_info import GrowingLayer, ModelInfo
from lacache.policies import UNBOUNDED, BoundPolicy, Budget, Schedule


@final
@dataclass(frozen=True)
class CacheLayout:
    """Head groups, layers and types of a static cache; fixed before anything is allocated.

    Args:
        info: the model's layers.
        bound: the bound policy.
        kv_dtype: "int8" or "int4" (docs/adr/0023); None is the model's own type. Sliding-window
            layers stay in the model's type.

    Raises:
        ConfigError: the policy keeps every token, there is no such kv_dtype, or it does not fit the
            heads.
        UnsupportedModelError: the model has linear-attention layers.
        UnsupportedOperationError: the policy splits a layer whose attention has learned sinks.
    """

    info: ModelInfo
    bound: BoundPolicy
    kv_dtype: str | None = None

    def __post_init__(self) -> None:
        if self.info.linear:
            raise UnsupportedModelError(
                f"layer {self.info.linear[0]} is linear attention, whose state the engine does "
                "not hold; use LaCache and lacache.stream with this model"
            )
        if any(group.schedule.capacity == UNBOUNDED for group in self.bound.groups):
            raise ConfigError(
                f"{self.bound.policy} keeps every token, and the engine's memory is fixed; "
                "try policy='balanced' with a budget, or use LaCache and lacache.stream"
            )
        for group in self.bound.groups:
            for depth, heads in group.heads.items():
                layer = self.info.growing[depth]
                if layer.has_sinks and len(heads) < layer.num_heads:
                    raise UnsupportedOperationError(
                        f"the attention of layer {layer.index} has a number for each head, which "
                        "KV heads in different groups cannot share; use groups of whole layers"
                    )
        validate_kv_dtype(self.kv_dtype)

    @property
    def bytes_per_sequence(self) -> int:
        """Bytes that are reserved for one sequence, whatever its length."""
        return self.growing_bytes + self._sliding_bytes(sys.maxsize)

    @property
    def growing_bytes(self) -> int:
        """Bytes of one sequence in the layers under the policy, unrotated keys included."""
        return self._group_bytes([group.schedule.capacity for group in self.bound.groups])

    def held_bytes(self, num_seen: int, num_cached: Sequence[int]) -> int:
        """Return the bytes of the tokens that one sequence holds.

        Args:
            num_seen: its tokens.
            num_cached: for each head group, the tokens in each of its KV heads.
        """
        return self._group_bytes(num_cached) + self._sliding_bytes(num_seen)

    def _group_bytes(self, num_slots: Sequence[int]) -> int:
        return sum(
            len(heads) * self._head_bytes(self.info.growing[depth], group.schedule, slots)
            for group, slots in zip(self.bound.groups, num_slots, strict=True)
            for depth, heads in group.heads.items()
        )

    def _head_bytes(self, layer: GrowingLayer, schedule: Schedule, num_slots: int) -> int:
        """Return the bytes of so many slots in one KV head of a layer."""
        key, value = _vectors_bytes(layer, self.kv_dtype, self.info.dtype)
        return num_slots * (key + value) + min(num_slots, num_unrotated(layer, schedule)) * key

    def _sliding_bytes(self, num_seen: int) -> int:
        return sum(
            layer.num_heads
            * min(layer.window, num_seen)
            * (layer.key_size + layer.value_size)
            * self.info.dtype.itemsize
            for layer in self.info.sliding
        )


def bind_within_bytes(
    info: ModelInfo,
    budget: Budget | None,
    bind: Callable[[int], BoundPolicy],
    kv_dtype: str | None = None,
) -> BoundPolicy:
    """Bind a policy so that the buffers take no more than a budget in bytes.

    Every head group is allocated at its largest, which they need not reach at the same time, so
    the buffers can take more bytes than the tokens held (docs/adr/0009).

    Args:
        info: the model's layers.
        budget: the budget; `bind` alone handles one that is not in bytes.
        bind: returns the bound policy, given the bytes of a token over all growing layers.
        kv_dtype: see CacheLayout.

    Raises:
        ConfigError: too few bytes for the policy, or no such kv_dtype.
    """
    validate_kv_dtype(kv_dtype)
    per_token = sum(
        layer.num_heads * sum(_vectors_bytes(layer, kv_dtype, info.dtype)) for layer in info.growing
    )
    limit = 0 if budget is None else budget.num_bytes
    while True:
        bound = bind(per_token)
        if not limit or (taken := CacheLayout(info, bound, kv_dtype).growing_bytes) <= limit:
            return bound
        per_token = max(per_token + 1, -(-per_token * taken // limit))


def num_unrotated(layer: GrowingLayer, schedule: Schedule) -> int:
    """Return the slots of a layer whose keys move, and which are stored unrotated besides."""
    return 0 if layer.rotation is None else schedule.num_moving


def _vectors_bytes(
    layer: GrowingLayer, kv_dtype: str | None, dtype: torch.dtype
) -> tuple[int, int]:
    """Return the bytes of a key and of a value of one KV head."""
    keys, values = find_codecs(kv_dtype, dtype)
    return keys.vector_bytes(layer.key_size), values.vector_bytes(layer.value_size)
