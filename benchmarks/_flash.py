"""Flash attention over the engine's buffers: only as far as each row is filled.

Torch's fused attention takes a mask of the unused slots, which its flash kernels refuse, and reads
those slots too. `varlen_attn` takes lengths instead. Every KV head of every row stands as a
sequence of its own here, so that buffers [B, Hkv, C, D] are read where they lie.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lacache.cache.static import attention


def flash(
    module: nn.Module,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    visible: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """An `attention.Attend` for steps of one token; prompt chunks use fused attention.

    The visible slots [B, 1, 1, C] must be the first ones of each row.
    """
    from torch.nn.attention.varlen import varlen_attn

    rows, num_heads, num_new, size = query.shape
    kv_heads, slots = keys.shape[1:3]
    if visible is None or num_new > 1:
        return attention.fused(module, query, keys, values, visible, options)
    sequences = rows * kv_heads
    lengths = visible.sum(dim=-1, dtype=torch.int32).view(rows, 1).expand(-1, kv_heads)
    starts = torch.arange(sequences + 1, dtype=torch.int32, device=query.device)
    found: Any = varlen_attn(
        query.reshape(sequences, num_heads // kv_heads, size),
        keys.reshape(sequences * slots, 1, size),
        values.reshape(sequences * slots, 1, size),
        starts,
        starts * slots,
        1,
        slots,
        scale=options.get("scaling"),
        enable_gqa=True,
        seqused_k=lengths.reshape(-1),
    )
    output: Tensor = found.reshape(rows, num_heads, 1, size)
    return output


def largest_difference(device: torch.device, dtype: torch.dtype) -> float:
    """Between `flash` and `attention.fused`, on random states and rows of several lengths."""
    rows, kv_heads, heads, slots, size = 4, 2, 8, 256, 128
    made = torch.Generator(device).manual_seed(0)

    def states(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype, device=device, generator=made)

    query, keys = states(rows, heads, 1, size), states(rows, kv_heads, slots, size)
    values = states(rows, kv_heads, slots, size)
    last = torch.tensor([0, 1, 100, slots - 1], device=device)
    visible = (torch.arange(slots, device=device) <= last[:, None])[:, None, None]
    arguments = (nn.Identity(), query, keys, values, visible, {"scaling": size**-0.5})
    return float((flash(*arguments) - attention.fused(*arguments)).abs().max())
