"""Positions are slots, which a model does not know: its keys and queries are turned later."""

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
"""Those that turn by a table of cosines and sines for each position, and by nothing else."""


_TABLES: list[RotaryEmbedding] = []


def register() -> None:
    """Let vLLM build models with layers of positions that a ladder can switch off."""
    for layer in SUPPORTED:
        name = layer.name
        by_slots = layer.register_oot(_by_slots(layer))
        # By this name users and passes of vLLM switch the layer on and off.
        by_slots.name = name


def table_of_model() -> RotaryEmbedding:
    """The one layer of positions of this process's model.

    Raises:
        UnsupportedModelError: it has none that is supported, or several.
    """
    if len(_TABLES) != 1:
        names = ", ".join(layer.__name__ for layer in SUPPORTED)
        raise UnsupportedModelError(
            f"the model has {len(_TABLES)} rotary tables of a kind that turns by position alone, "
            f"and a ladder needs one for all layers; supported are {names}"
        )
    return _TABLES[0]


def validate_reach(capacity: int) -> None:
    """Check that the model has positions for every slot.

    Raises:
        ConfigError: the capacity is beyond them.
    """
    reach = len(table_of_model().cos_sin_cache)
    if capacity > reach:
        raise ConfigError(
            f"budget={capacity} must be at most {reach}, the positions of the model; "
            f"try budget={reach}"
        )


def turn(table: RotaryEmbedding, states: Tensor, positions: Tensor) -> None:
    """Turn keys or queries to positions, in place.

    Args:
        table: of the model.
        states: [tokens, heads, head size], contiguous.
        positions: [tokens], int64.
    """
    ops.rotary_embedding(
        positions,
        states.view(states.shape[0], -1),
        None,
        table.head_size,
        table._match_cos_sin_cache_dtype(states),
        table.is_neox_style,
    )


def _by_slots(layer: type[RotaryEmbedding]) -> type[RotaryEmbedding]:
    """A layer as vLLM's own, which leaves keys and queries as they are under a ladder."""

    class BySlots(layer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._is_by_slots = PROCESS.decide() is not None
            if self._is_by_slots:
                _TABLES.append(self)

        def forward_native(
            self, positions: Tensor, query: Tensor, key: Tensor | None = None
        ) -> tuple[Tensor, Tensor | None]:
            if self._is_by_slots:
                return query, key
            return super().forward_native(positions, query, key)

        def forward_cpu(
            self, positions: Tensor, query: Tensor, key: Tensor | None = None
        ) -> tuple[Tensor, Tensor | None]:
            if self._is_by_slots:
                return query, key
            return super().forward_cpu(positions, query, key)

        def forward_cuda(
            self, positions: Tensor, query: Tensor, key: Tensor | None = None
        ) -> tuple[Tensor, Tensor | None]:
            if self._is_by_slots:
                return query, key
            return super().forward_cuda(positions, query, key)

    BySlots.__qualname__ = BySlots.__name__ = f"BySlots{layer.__name__}"
    return BySlots
