"""Rotary layers that rotate nothing: positions are no token counts, so attention rotates."""

from functools import lru_cache
from typing import Any

import torch
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
from lacache.policies.schedule import Schedule

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


def validate_num_positions(schedule: Schedule, trained_length: int) -> None:
    """Check that the model's rotary layer has every position that keys may stand at.

    Args:
        schedule: of every sequence.
        trained_length: positions that the model was trained on.

    Raises:
        ConfigError: it has fewer.
    """
    num_positions = len(model_rotary().cos_sin_cache)
    if schedule.capacity > num_positions:
        raise ConfigError(
            f"budget={schedule.capacity} must be at most {num_positions}, the positions of the "
            f"model; try budget={num_positions}"
        )
    if schedule.positions == "original" and trained_length > num_positions:
        raise ConfigError(
            f"max_position_embeddings={trained_length} of the model must be at most "
            f"{num_positions}, the positions that its rope_parameters cover; correct its "
            "config.json, or try positions=slots in the policy"
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


def rotate_back(rotary: RotaryEmbedding, keys: Tensor, distances: Tensor) -> Tensor:
    """Return rotated keys as they are at lower positions, rounded once more to their type.

    Args:
        rotary: of the model.
        keys: [tokens, KV heads, head size].
        distances: [tokens], int64, at least 0.
    """
    wide = keys.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    table = _reverse_table(rotary).to(keys.device)
    flat = wide.view(wide.shape[0], -1)
    ops.rotary_embedding(distances, flat, None, rotary.head_size, table, rotary.is_neox_style)
    return wide.to(keys.dtype)


@lru_cache(maxsize=1)
def _reverse_table(rotary: RotaryEmbedding) -> Tensor:
    """Return cosines and sines that undo a rotation [positions, rotary size], float32."""
    cos, sin = rotary._compute_cos_sin_cache().float().chunk(2, dim=-1)
    # At position 0 the cosine is the model's attention scaling, which the keys already have.
    return torch.cat([cos / cos[:1], -sin / cos[:1]], dim=-1)


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
