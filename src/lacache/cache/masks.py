"""Masks of several sizes in one forward (docs/adr/0006).

transformers makes one mask for all full-attention layers, sized by the first. Where groups hold
different numbers of tokens, each attention module gets its own instead, through an ordinary torch
forward hook that acts on calls with such a cache only.
"""

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lacache.cache.guard import GuardedCache
from lacache.errors import UnsupportedModelError, UnsupportedOperationError


def guard_masks(decoder: nn.Module, layers: Iterable[int]) -> None:
    """Hang the hook on the attention modules of these layers, once.

    Raises:
        UnsupportedModelError: a layer without a module that takes an attention mask.
    """
    modules = [m for m in decoder.modules() if "layer_idx" in vars(m) and _takes_mask(m)]
    # Where whole layers have a layer_idx too, the mask goes through them to their attention.
    inner = [m for m in modules if not any(part in modules for part in list(m.modules())[1:])]
    for layer in layers:
        found = [module for module in inner if vars(module)["layer_idx"] == layer]
        if not found:
            raise UnsupportedModelError(
                f"layer {layer} of {type(decoder).__name__} has no module with a layer_idx that "
                "takes an attention_mask, so groups of different capacities cannot be masked; use "
                "one policy for all layers"
            )
        for module in found:
            if _set_mask not in module._forward_pre_hooks.values():
                module.register_forward_pre_hook(_set_mask, with_kwargs=True)


def visible_keys(lengths: Sequence[int], num_new: int) -> Tensor | None:
    """Which keys each new token attends to: bool [1, H, Q, K], or None for all.

    Head h holds its `lengths[h]` keys at the right end, the new tokens last; what is left of them
    is filling. Without any, H is 1: the same for all heads.
    """
    longest = max(lengths)
    if min(lengths) == longest:
        if num_new == 1:
            return None
        lengths = (longest,)
    causal = torch.ones(num_new, longest, dtype=torch.bool).tril(longest - num_new)
    filled = torch.arange(longest) < longest - torch.tensor(lengths)[:, None]
    return (causal & ~filled[:, None])[None]


def _takes_mask(module: nn.Module) -> bool:
    return "attention_mask" in inspect.signature(module.forward).parameters


def _set_mask(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    cache = next((v for v in (*args, *kwargs.values()) if isinstance(v, GuardedCache)), None)
    if cache is None:
        return None
    lengths = cache.key_lengths(int(vars(module)["layer_idx"]))
    if lengths is None:
        return None
    hidden: Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    visible = visible_keys(lengths, hidden.shape[1])
    config: Any = module.config
    implementation: str = config._attn_implementation
    mask: Tensor | None
    if implementation.startswith("flash_attention") and len(lengths) == 1:
        # These align queries and keys at the right by themselves.
        mask = None
    elif implementation in ("sdpa", "eager"):
        mask = _in_form(visible, implementation, config.num_attention_heads, hidden)
    else:
        raise UnsupportedOperationError(
            f"groups of different capacities cannot be masked with attention {implementation!r}; "
            "try model.set_attn_implementation('sdpa')"
        )
    return args, {**kwargs, "attention_mask": mask}


def _in_form(
    visible: Tensor | None, implementation: str, num_heads: int, hidden: Tensor
) -> Tensor | None:
    """The mask as an attention implementation wants it; transformers' `masking_utils` has them."""
    if visible is None:
        return None
    if visible.shape[1] > 1:
        visible = visible.repeat_interleave(num_heads // visible.shape[1], dim=1)
    visible = visible.to(hidden.device)
    if implementation == "sdpa":
        return visible
    hide = torch.finfo(hidden.dtype).min
    return torch.zeros(visible.shape, dtype=hidden.dtype, device=hidden.device).masked_fill(
        ~visible, hide
    )
