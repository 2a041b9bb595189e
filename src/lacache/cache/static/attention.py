"""Attention of models in the engine, and the layers of a cache that compute it (docs/adr/0010).

Models call the attention function that their configuration names, with what `Cache.update` returned
as keys. The function registered here calls `attend` of those keys, which are a layer of the static
cache. So KV heads that hold different numbers of tokens need no padding, no layer needs another's
mask, and query heads that share keys need no copies of them.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from lacache.cache.layers import EvictingLayer
from lacache.cache.static.kv_heads import KVHeads
from lacache.cache.static.storage import LayerStates
from lacache.common.packages import quiet_imports
from lacache.errors import UnsupportedModelError, UnsupportedOperationError

with quiet_imports():
    from transformers import AttentionInterface

NAME = "lacache"

Attend = Callable[..., Tensor]
"""(module, query [B, Hq, Q, D], keys, values [B, Hkv, N, D], visible, options) -> [B, Hq, Q, D].

`visible` is bool [B or 1, 1, 1 or Q, N], or None where all keys are visible.
"""


@final
@dataclass(frozen=True)
class ChunkStates:
    """Keys and values of a layer, and which of them are visible to the queries of a chunk."""

    keys: Tensor
    """[N, D], in the model's type."""
    values: Tensor
    first_slots: Tensor
    """Index of each KV head's first slot in keys and values [Hkv]."""
    num_stored: list[int]
    """Slots in use of each KV head."""
    new: tuple[Tensor, Tensor]
    """Keys and values [1, Hkv, N, D] that count as the slots after them."""
    moved_sinks: list[Tensor]
    """For each KV head, keys [M, D] that count as the slots after these."""
    visible: list[Tensor]
    """For each KV head; see `ChunkTokens.visible`."""


class InPlaceAttention(ABC):
    """Attention that reads the slots in use where they are."""

    @abstractmethod
    def attend(
        self,
        query: Tensor,
        keys: LayerStates,
        values: LayerStates,
        first_slots: Tensor,
        last_slots: Tensor,
        options: dict[str, Any],
    ) -> Tensor | None:
        """Compute the attention of one token of each sequence.

        Args:
            query: [B, Hq, 1, D].
            keys: of the layer.
            values: of the layer.
            first_slots: in `Storage.flat`, the index of each KV head's first slot [B, Hkv].
            last_slots: the last slot that each attends to, counted from there [B, Hkv].
            options: of the model's attention.

        Returns:
            [B, Hq, 1, D]; None for formats and options that are not supported.
        """

    @abstractmethod
    def attend_chunk(
        self, query: Tensor, states: ChunkStates, options: dict[str, Any]
    ) -> Tensor | None:
        """Compute the attention of one sequence's chunk.

        Args:
            query: [1, Hq, Q, D].
            states: what it sees.
            options: of the model's attention.

        Returns:
            [1, Hq, Q, D]; None for formats and options that are not supported.
        """


def register() -> None:
    """Register the attention function with transformers, under `NAME`."""
    AttentionInterface.register(NAME, _attend_by_keys)


def _attend_by_keys(
    module: nn.Module, query: Tensor, key: Any, value: Any, attention_mask: Any, **options: Any
) -> tuple[Tensor, None]:
    return key.attend(module, query, options).transpose(1, 2), None


def find_attention(module: nn.Module, implementation: str) -> Attend:
    """Return the attention of a model, as a function of keys, values and a mask.

    Args:
        module: an attention module of the model.
        implementation: the name of its attention in the configuration.

    Raises:
        UnsupportedModelError: the model has no eager attention function.
    """
    if implementation != "eager":
        return fused
    eager = vars(sys.modules[type(module).__module__]).get("eager_attention_forward")
    if eager is None:
        raise UnsupportedModelError(
            f"{type(module).__module__} has no eager_attention_forward, so how it attends is "
            "unknown; use LaCache(model, budget=512) and lacache.stream with this model"
        )

    def attend(
        module: nn.Module,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        visible: Tensor | None,
        options: dict[str, Any],
    ) -> Tensor:
        mask = None
        if visible is not None:
            hide = torch.finfo(query.dtype).min
            mask = torch.where(visible, 0.0, hide).to(query.dtype)
        output: Tensor = eager(module, query, keys, values, mask, **options)[0]
        return output.transpose(1, 2)

    return attend


def fused(
    module: nn.Module,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    visible: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """Compute torch's fused attention; query heads of one KV head become more queries.

    Raises:
        UnsupportedOperationError: the model caps its scores or has learned sinks.
    """
    if options.get("softcap") is not None or options.get("s_aux") is not None:
        raise UnsupportedOperationError(
            "the model's attention caps its scores or has a number for each head, which fused "
            "attention cannot; call model.set_attn_implementation('eager')"
        )
    batch, num_heads, num_new, size = query.shape
    shared = num_heads // keys.shape[1]
    if visible is not None and visible.shape[2] > 1:
        visible = visible[:, :, None].expand(-1, -1, shared, -1, -1).flatten(2, 3)
    output = scaled_dot_product_attention(
        query.reshape(batch, keys.shape[1], shared * num_new, size),
        keys,
        values,
        attn_mask=visible,
        scale=options.get("scaling"),
    )
    return output.reshape(batch, num_heads, num_new, values.shape[-1])


VisibleKV = tuple[Tensor, Tensor, Tensor | None]
"""Keys and values [B, H, N, D], and a mask of the visible ones, bool [B or 1, 1, 1 or Q, N]."""


class AttendingLayer(EvictingLayer, ABC):
    """A layer that stores new keys and values, and computes attention over all it holds."""

    is_compileable = True

    def __init__(self, attend: Attend) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._attend = attend
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Insert, and return this layer in place of keys and values.

        The model must use the attention function `NAME`, which calls `attend`.

        Args:
            key_states: new keys [B, Hkv, Q, D], rotated by the model.
            value_states: new values [B, Hkv, Q, D].
            args: ignored; models pass more than a cache needs.
            kwargs: ignored.
        """
        self.insert(key_states, value_states)
        return self, self

    @abstractmethod
    def insert(self, keys: Tensor, values: Tensor) -> None:
        """Add new keys and values [B, Hkv, Q, D]."""

    @abstractmethod
    def attend(self, module: nn.Module, query: Tensor, options: dict[str, Any]) -> Tensor:
        """Return the attention output [B, Hq, Q, D] of queries [B, Hq, Q, D]."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing, as the buffers are allocated."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return sizes that no model uses, as attention makes its own masks."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Return a count that no model uses, as position ids are always given."""
        return 0


class GroupedLayer(AttendingLayer, ABC):
    """A layer under the policy, with its KV heads in one head group or in several."""

    def __init__(self, attend: Attend, by_group: tuple[KVHeads, ...]) -> None:
        super().__init__(attend)
        self.by_group = by_group

    @abstractmethod
    def visible_kv(self, kv_heads: KVHeads) -> VisibleKV:
        """Return what the new tokens attend to in the KV heads of one group."""

    def select(self, states: Tensor, kv_heads: KVHeads) -> Tensor:
        """Return the KV heads of one group among keys or values [B, Hkv, Q, D]."""
        return states if len(self.by_group) == 1 else states[:, list(kv_heads.heads)]

    def attend(self, module: nn.Module, query: Tensor, options: dict[str, Any]) -> Tensor:
        """Attend group by group, and put the heads in their order."""
        if len(self.by_group) == 1:
            keys, values, visible = self.visible_kv(self.by_group[0])
            return self._attend(module, query, keys, values, visible, options)
        if options.get("s_aux") is not None:
            raise UnsupportedOperationError(
                "the model's attention has a number for each head, which KV heads in different "
                "groups cannot share; use groups of whole layers"
            )
        num_heads = sum(len(kv_heads.heads) for kv_heads in self.by_group)
        batch, num_queries, num_new, size = query.shape
        by_head = query.reshape(batch, num_heads, num_queries // num_heads, num_new, size)
        outputs: dict[int, Tensor] = {}
        for kv_heads in self.by_group:
            heads = kv_heads.heads
            keys, values, visible = self.visible_kv(kv_heads)
            queries = by_head[:, list(heads)].flatten(1, 2)
            output = self._attend(module, queries, keys, values, visible, options)
            outputs.update(zip(heads, output.chunk(len(heads), dim=1), strict=True))
        return torch.cat([outputs[head] for head in range(num_heads)], dim=1)


def attends_twice() -> UnsupportedModelError:
    """Return the error of a layer whose keys another one attends to as well."""
    return UnsupportedModelError(
        "another layer of the model attends to the keys and values of a layer that has compacted "
        "since; make the engine with chunk_size=1"
    )
