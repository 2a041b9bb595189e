"""Window emulation by masks alone: the twin of mixing coefficients that are 0 or 1."""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from lacache.calibration.emulation import visible_tokens
from lacache.models.model_info import model_info


@torch.no_grad()
def masked_logits(
    model: Any, token_ids: list[int], keep: Tensor, *, window: int, sinks: int
) -> Tensor:
    """Logits [N, V] of a model whose KV heads see all tokens only where `keep` [L, H] is True."""
    visible = visible_tokens(len(token_ids), window, sinks)
    config = model_info(model).text_config
    with ExitStack() as stack:
        for number, layer in enumerate(model_info(model).growing):
            mask = visible[keep[number, : layer.num_heads].long()]
            mask = mask.repeat_interleave(config.num_attention_heads // layer.num_heads, dim=0)
            (attention,) = (
                module
                for module in model.get_decoder().layers[layer.index].modules()
                if vars(module).get("layer_idx") == layer.index and hasattr(module, "is_causal")
            )
            hook = _mask_hook(mask[None], config._attn_implementation == "eager")
            stack.callback(attention.register_forward_pre_hook(hook, with_kwargs=True).remove)
        logits: Tensor = model(torch.tensor([token_ids]), use_cache=False).logits[0]
    return logits


def _mask_hook(mask: Tensor, is_eager: bool) -> Any:
    if is_eager:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    return lambda _module, args, kwargs: (args, {**kwargs, "attention_mask": mask})
