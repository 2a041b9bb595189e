"""The engine's private copy of a model's modules, over the same weights."""

import copy
from typing import Any

from torch import nn

from lacache.cache.static import attention
from lacache.errors import UnsupportedModelError
from lacache.models.decoder import find_decoder


def private_model(model: Any) -> tuple[Any, attention.Attend]:
    """Return a copy of a model whose attention calls its cache, and the original attention.

    Weights and buffers are shared; modules and configuration are copies, so that the caller's
    model is unchanged (docs/adr/0010).

    Raises:
        UnsupportedModelError: the model is spread over devices, or has no attention function of
            transformers.
    """
    decoder = find_decoder(model)
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1 or "hf_device_map" in vars(model):
        raise UnsupportedModelError(
            f"the model lies on {', '.join(sorted(map(str, devices)))}, and the engine runs on one "
            "device; load it without device_map, or use LaCache(model, budget=512) and "
            "lacache.stream"
        )
    modules = [m for m in decoder.modules() if "layer_idx" in vars(m) and "config" in vars(m)]
    if not modules:
        raise UnsupportedModelError(
            f"{type(decoder).__name__} has no attention modules like those of transformers, so the "
            "engine cannot run them; use LaCache(model, budget=512) and lacache.stream"
        )
    config: Any = vars(modules[-1])["config"]
    attend = attention.find_attention(modules[-1], config._attn_implementation)
    # Own parameters over the same memory: if the caller casts or moves the model, its parameters
    # get other memory, which a compiled step would not notice.
    shared: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        is_plain = type(parameter) is nn.Parameter
        own = nn.Parameter(parameter.detach(), requires_grad=False) if is_plain else parameter
        shared[id(parameter)] = own
    attention.register()
    private: nn.Module = copy.deepcopy(model, memo=shared)
    private.eval()
    for module in private.modules():
        if "config" in vars(module):
            copied: Any = vars(module)["config"]
            copied._attn_implementation = attention.NAME
    return private, attend
