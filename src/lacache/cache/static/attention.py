"""The attention function of models in the engine (docs/adr/0010).

Models call the attention function that their configuration names, with what `Cache.update` returned
as keys. The function registered here calls `attend` of those keys, which are a layer of the static
cache. So KV heads that hold different numbers of tokens need no padding, no layer needs another's
mask, and query heads that share keys need no copies of them.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from lacache.common.packages import quiet_imports
from lacache.errors import UnsupportedModelError, UnsupportedOperationError

with quiet_imports():
    from transformers import AttentionInterface

NAME = "lacache"

Attend = Callable[..., Tensor]
"""(module, query [B, Hq, Q, D], keys, values [B, Hkv, N, D], visible, options) -> [B, Hq, Q, D].

`visible` is bool [B or 1, 1, 1 or Q, N], or None where all keys are visible.
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
