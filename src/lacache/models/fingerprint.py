"""Tell one set of weights from another, at a glance."""

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from lacache.models.model_info import find_decoder

_PER_TENSOR = 32
_FACTS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)


def fingerprint(model: Any) -> str:
    """Two short hashes joined by "-": of the configuration's shape, and of a few weights.

    Weights are compared in bfloat16, so a checkpoint gives the same fingerprint when it is loaded
    in bfloat16 or float32. Loaded in float16 it does too, unless a weight that is looked at is too
    small for float16 or was rounded twice. Some 32 weights of every matrix are looked at: this
    tells checkpoints apart, and proves nothing against somebody who means to deceive. Weights that
    are not in memory (offloaded, on the meta device) are left out, which gives other hashes.

    Raises:
        UnsupportedModelError: not a decoder model of transformers.
    """
    decoder = find_decoder(model)
    config = model.config.get_text_config(decoder=True).to_dict()
    shape = json.dumps([config.get(name) for name in _FACTS])
    weights = hashlib.sha256()
    for name, weight in decoder.named_parameters():
        if weight.ndim >= 2 and not weight.is_meta:
            weights.update(name.encode())
            weights.update(_sample(weight).numpy().tobytes())
    return f"{hashlib.sha256(shape.encode()).hexdigest()[:8]}-{weights.hexdigest()[:12]}"


@torch.no_grad()
def _sample(weight: Tensor) -> Tensor:
    """Evenly spread elements, as the bits of bfloat16 in int16."""
    flat = weight.detach().flatten()
    places = torch.arange(_PER_TENSOR, device=flat.device) * (flat.numel() - 1) // (_PER_TENSOR - 1)
    # Zeros come with two signs.
    return (flat[places].to(torch.bfloat16) + 0.0).cpu().view(torch.int16)
