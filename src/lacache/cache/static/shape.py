"""What the buffers of a model and a bound policy look like, and so how many bytes they take."""

from dataclasses import dataclass
from typing import final

import torch

from lacache.cache.static.quantized import bytes_per_state
from lacache.common.validation import validate_kv_dtype
from lacache.errors import ConfigError, UnsupportedModelError, UnsupportedOperationError
from lacache.models.model_info import GrowingLayer, ModelInfo
from lacache.policies import UNBOUNDED, BoundGroup, BoundPolicy


@final
@dataclass(frozen=True)
class StaticShape:
    """Known before anything is allocated, and for ever.

    Args:
        info: of the model.
        bound: what is kept.
        kv_dtype: "int8" or "float8_e4m3fn", with a scale for each token and head; None is the
            model's own type. Layers whose attention is a window by itself stay in the model's.

    Raises:
        ConfigError: the policy keeps everything, so nothing fixed can hold it; or there is no such
            kv_dtype.
        UnsupportedModelError: the model has layers with a state of another kind.
        UnsupportedOperationError: the policy divides a layer whose attention has sinks of its own.
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
        if any(group.schedule.capacity == UNBOUNDED for group in self.groups):
            raise ConfigError(
                f"{self.bound.policy} keeps every token, and the engine's memory is fixed; "
                "give a budget, or use LaCache and lacache.stream"
            )
        for group in self.groups:
            for depth, heads in group.heads.items():
                layer = self.info.growing[depth]
                if layer.has_sinks and len(heads) < layer.num_heads:
                    raise UnsupportedOperationError(
                        f"the attention of layer {layer.index} has a number for each head, which "
                        "KV heads in different groups cannot share; use groups of whole layers"
                    )
        validate_kv_dtype(self.kv_dtype)

    @property
    def groups(self) -> tuple[BoundGroup, ...]:
        """Groups of KV heads and their schedules."""
        return self.bound.groups

    @property
    def row_bytes(self) -> int:
        """Of one sequence, whatever its length."""
        dtype = self.info.dtype
        windows = (
            ring.num_heads * ring.window * (ring.key_size + ring.value_size) * dtype.itemsize
            for ring in self.info.sliding
        )
        return self.growing_bytes + sum(windows)

    @property
    def growing_bytes(self) -> int:
        """The same, of the growing layers: keys twice, where positions move them."""
        return sum(
            len(heads)
            * group.schedule.capacity
            * _bytes_per_slot(self.info.growing[depth], self.kv_dtype, self.info.dtype)
            for group in self.groups
            for depth, heads in group.heads.items()
        )


def bytes_per_token(info: ModelInfo, kv_dtype: str | None = None) -> int:
    """Of one token in every growing layer.

    Raises:
        ConfigError: there is no such kv_dtype.
    """
    validate_kv_dtype(kv_dtype)
    return sum(
        layer.num_heads * _bytes_per_slot(layer, kv_dtype, info.dtype) for layer in info.growing
    )


def _bytes_per_slot(layer: GrowingLayer, kv_dtype: str | None, dtype: torch.dtype) -> int:
    """Of one token in one head of a layer."""
    copies = 1 if layer.rotation is None else 2
    keys = copies * bytes_per_state(layer.key_size, kv_dtype, dtype)
    return keys + bytes_per_state(layer.value_size, kv_dtype, dtype)
