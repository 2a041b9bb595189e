"""A hash that tells models apart, quick enough to be made at every start."""

import hashlib
from typing import Any

import torch

_VALUES = 64


@torch.no_grad()
def weights_sha256(model: Any) -> str:
    """SHA-256 over each parameter's name, shape, type and some of its values, by name.

    The values are up to 64 of each parameter, evenly spaced and first and last among them. So it
    tells other weights, types and architectures apart, and nearly every finetune, but not a change
    of single values.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        flat = weight.detach().reshape(-1)
        picked = torch.linspace(0, len(flat) - 1, min(len(flat), _VALUES), dtype=torch.float64)
        values = flat[picked.long().to(flat.device)].to("cpu", torch.float32)
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        digest.update(values.numpy().astype("<f4").tobytes())
    return digest.hexdigest()
