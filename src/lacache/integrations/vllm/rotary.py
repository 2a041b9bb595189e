"""Rotary layers that rotate nothing: positions are no token counts, so attention rotates."""

from collections.abc import Sequence
from copy import copy
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
from lacache.policies import Schedule

SUPPORTED: tuple[type[RotaryEmbedding], ...] = (
    RotaryEmbedding,
    LinearScalingRotaryEmbedding,
    Llama3RotaryEmbedding,
    YaRNScalingRotaryEmbedding,
)
"""Rotary layers that depend on a table of cosines and sines by position, and on nothing else."""

_MODEL_ROTARIES: list[RotaryEmbedding] = []


def register() -> None:
    """Register rotary layers with vLLM that leave the rotation to attention under a policy."""
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
            f"the model has {len(_MODEL_ROTARIES)} supported rotary layers, and a policy needs one "
            f"that all layers share; supported are {names}"
        )
    return _MODEL_ROTARIES[0]


def ensure_num_positions(schedules: Sequence[Schedule], trained_length: int) -> None:
    """Extend the model's rotary layer to every position that keys may stand at.

    A history can be longer than the trained length, as in the engine; its table of cosines and
    sines goes on.

    Args:
        schedules: of the head groups.
        trained_length: positions that the model was trained on.

    Raises:
        ConfigError: the layer has too few, and its table depends on how many there are.
    """
    rotary = model_rotary()
    table = rotary.cos_sin_cache
    if schedules[0].positions == "original" and trained_length > len(table):
        raise ConfigError(
            f"max_position_embeddings={trained_length} of the model must be at most "
            f"{len(table)}, the positions that its rope_parameters cover; correct its "
            "config.json, or try positions=slots in the policy"
        )
    most = max(schedule.capacity for schedule in schedules)
    if most <= len(table):
        return
    longer = copy(rotary)
    longer.max_position_embeddings *= -(-most // len(table))
    found = longer._compute_cos_sin_cache().to(table)
    if not found[: len(table)].equal(table):
        raise ConfigError(
            f"a KV head keeps up to {most} tokens under this policy and budget, and must keep at "
            f"most {len(table)}, the positions of {type(rotary).__name__}; try at most "
            f"{len(table) / most:.2f} times the budget"
        )
    rotary.max_position_embeddings = longer.max_position_embeddings
    rotary.cos_sin_cache = found


def rotate(rotary: RotaryEmbedding, states: Tensor, positions: Tensor) -> None:
    """Rotate keys or queries to positions, in place.

    Args:
        rotary: of the model.
        states: [N, ..., head size], contiguous.
        positions: [N], int64.
    """
    _rotate(rotary, states, positions, rotary._match_cos_sin_cache_dtype(states))


def rotate_by(rotary: RotaryEmbedding, keys: Tensor, distances: Tensor) -> Tensor:
    """Return rotated keys as they are at other positions, rounded once more to their type.

    Args:
        rotary: of the model.
        keys: [N, head size].
        distances: [N], int64, by how much higher each shall stand.
    """
    wide = keys.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    table = _distance_table(rotary).to(keys.device)
    _rotate(rotary, wide, distances + len(table) // 2, table)
    return wide.to(keys.dtype)


def _rotate(rotary: RotaryEmbedding, states: Tensor, positions: Tensor, table: Tensor) -> None:
    flat = states.view(states.shape[0], -1)
    ops.rotary_embedding(positions, flat, None, rotary.head_size, table, rotary.is_neox_style)


@lru_cache(maxsize=1)
def _distance_table(rotary: RotaryEmbedding) -> Tensor:
    """Return cosines and sines by distance, from -P to P [2 P + 1, rotary size], float32."""
    cos, sin = rotary._compute_cos_sin_cache().float().chunk(2, dim=-1)
    # At position 0 the cosine is the model's attention scaling, which the keys already have.
    cos, sin = cos / cos[:1], sin / cos[:1]
    lower = torch.cat([cos, -sin], dim=-1).flip(0)
    return torch.cat([lower, torch.cat([cos, sin], dim=-1)[1:]])


def _deferred(layer: type[RotaryEmbedding]) -> type[RotaryEmbedding]:
    """Derive a rotary layer that returns keys and queries unrotated under a policy."""

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
