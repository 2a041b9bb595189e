"""Describe the inputs of a run for its record: model, weights, policy and tokens."""

import hashlib
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch

from lacache.cache.encoded import bytes_per_token
from lacache.common.records import Record
from lacache.models.model_info import model_info
from lacache.policies import Groups, Policy

_VALUES = 64


def model_record(model: Any, name: str) -> Record:
    """Return a model's name, architecture, size, number type and trained context."""
    config = model.config.get_text_config()
    return {
        "name": name,
        "architecture": type(model).__name__,
        "num_layers": config.num_hidden_layers,
        "parameters": model.num_parameters(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "trained_context": getattr(config, "max_position_embeddings", None),
    }


def kv_bits(model: Any, kv_dtype: str | None) -> float:
    """Return the bits that a number of a key or value takes where it is stored, scales included.

    Args:
        model: a causal language model of transformers.
        kv_dtype: what growing layers store; None is the model's own type.
    """
    info = model_info(model)
    numbers = sum(layer.num_heads * (layer.key_size + layer.value_size) for layer in info.growing)
    return 8 * bytes_per_token(info, kv_dtype) / numbers


@torch.no_grad()
def weights_sha256(model: Any) -> str:
    """Hash each parameter's name, shape, type and up to 64 evenly spaced values.

    Quick enough to run at every start. It distinguishes weights, types and architectures, and
    nearly every finetune, but not a change of single values.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        flat = weight.detach().reshape(-1)
        picked = torch.linspace(0, len(flat) - 1, min(len(flat), _VALUES), dtype=torch.float64)
        values = flat[picked.long().to(flat.device)].to("cpu", torch.float32)
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        digest.update(values.numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def policy_record(policy: Policy) -> Record:
    """Return a policy's name and settings; members of layers and heads as text."""
    name, _, settings = str(policy).partition(":")
    if isinstance(policy, Groups):
        return {"name": name, "groups": settings}
    record: Record = {"name": name}
    for setting in fields(policy):
        value = getattr(policy, setting.name)
        if "format" in setting.metadata:
            value = setting.metadata["format"](value) if value else None
        record[setting.name] = value
    return record


def tokens_sha256(token_ids: Sequence[int]) -> str:
    """Hash token ids as decimal numbers separated by commas."""
    return hashlib.sha256(",".join(map(str, token_ids)).encode()).hexdigest()
