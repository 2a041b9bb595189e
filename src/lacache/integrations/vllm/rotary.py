"""Rotary layers that rotate nothing: positions are slots, so attention rotates keys and queries."""

from typing import Any

from torch import Tensor
from vllm import _custom_ops as ops
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding
from vllm.model_executor.layers.rotary_embedding.linear_scaling_rope import (
    LinearScalingRotaryEmbedding,
)
from vllm.model_executor.layers.rotary_embedding.llama3_rope import Llama3RotaryEmbedding
from vllm.model_executor.layers.rotary_embedding.yarn_scaling_rope import (
    YaRNScalingRotaryEmbedding,
)

from lacache.errors import ConfigError, UnsupportedModelError
from lacache.integrations.vllm.process import PROCESS

SUPPORTED: tuple[type[RotaryEmbedding], ...] = (
    RotaryEmbedding,
    LinearScalingRotaryEmbedding,
    Llama3RotaryEmbedding,
    YaRNScalingRotaryEmbedding,
)
"""Rotary layers that depend on a table of cosines and sines by position, and on nothing else."""

_MODEL_ROTARIES: list[RotaryEmbedding] = []


def register() -> None:
    """Register rotary layers with vLLM that leave the rotation to attention under a ladder."""
    for layer in SUPPORTED:
        name = layer.name
        deferred = layer.register_oot(_deferred(layer))
        # Users and passes of vLLM switch the layer on and off by this name.
        deferred.name = name


def model_rotary() -> RotaryEmbedding:
    """Return the one rotary layer of this process's model.

    Raises:
        UnsupportedModelError: the model has no supported rotary layer, or several.
    """
    if len(_MODEL_ROTARIES) != 1:
        names = ", ".join(layer.__name__ for layer in SUPPORTED)
        raise UnsupportedModelError(
            f"the model has {len(_MODEL_ROTARIES)} supported rotary layers, and a ladder needs one "
            f"that all layers share; supported are {names}"
        )
    return _MODEL_ROTARIES[0]


def validate_capacity(capacity: int) -> None:
    """Check that the model has a position for every slot.

    Raises:
        ConfigError: the capacity exceeds the model's positions.
    """
    num_positions = len(model_rotary().cos_sin_cache)
    if capacity > num_positions:
        raise ConfigError(
            f"budget={capacity} must be at most {num_positions}, the positions of the model; "
            f"try budget={num_positions}"
        )


def rotate(rotary: RotaryEmbedding, states: Tensor, positions: Tensor) -> None:
    """Rotate keys or queries to positions, in place.

    Args:
        rotary: of the model.
        states: [tokens, heads, head size], contiguous.
        positions: [tokens], int64.
    """
    ops.rotary_embedding(
        positions,
        states.view(states.shape[0], -1),
        None,
        rotary.head_size,
        rotary._match_cos_sin_cache_dtype(states),
        rotary.is_neox_style,
    )


def _deferred(layer: type[RotaryEmbedding]) -> type[RotaryEmbedding]:
    """Derive a rotary layer that returns keys and queries unrotated under a ladder."""

    class Deferred(layer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._is_deferred = PROCESS.resolve() is not None
            if self._is_deferred:
                _MODEL_ROTARIES.append(self)

        def forward_native(
            self, positions: Tensor, query: Tensor, key: Tensor | None = None
        ) -> tuple[Tensor, Tensor | None]:
            if self._is_deferred:
                return query, key
            return super().forward_native(positions, query, key)

        def forward_cpu(
            self, positions: Tensor, query: Tensor, key: Tensor | None = None
        ) -> tuple[Tensor, Tensor | None]:
            if self._is_deferred:
                return query, key
            return super().forward_cpu(positions, query, key)

        def forward_cuda(
            self, positions: Tensor, query: Tensor, key: Tensor | None = None
        ) -> tuple[Tensor, Tensor | None]:
            if self._is_deferred:
                return query, key
            return super().forward_cuda(positions, query, key)

    Deferred.__qualname__ = Deferred.__name__ = f"Deferred{layer.__name__}"
    return Deferred
