"""Attention of one token in each row: only over the slots in use, which the kernel finds."""

from typing import Any

import torch
from torch import Tensor, nn

from lacache.cache.static.attention import Attend
from lacache.engine.cpu.linear import TYPES


def for_one_token(attend: Attend) -> Attend:
    """The kernel where it knows what is asked, and another way to attend where it does not.

    Args:
        attend: torch's fused attention, or one that means the same.
    """

    def attend_one(
        module: nn.Module,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        visible: Tensor | None,
        options: dict[str, Any],
    ) -> Tensor:
        is_known = (
            visible is not None
            and options.get("softcap") is None
            and options.get("s_aux") is None
            and query.shape[2] == 1
            and keys.dtype in TYPES
            and keys.dtype == values.dtype
            and keys.is_contiguous()
            and values.is_contiguous()
        )
        if not is_known:
            return attend(module, query, keys, values, visible, options)
        scale = options.get("scaling") or query.shape[-1] ** -0.5
        scaled = (query.float() * scale).contiguous()
        found: Tensor = torch.ops.lacache.attend(scaled, keys, values, visible)
        return found.to(query.dtype)

    return attend_one
