"""Tiny random models, as folders that vLLM loads; its kernels need heads of at least 32."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from tests.cache.tiny_models import LLAMA3, SHAPE, YARN

WIDE = SHAPE | {
    "vocab_size": 128,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 6,
    "eos_token_id": 2,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
PARTIAL = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
CONFIGS = {
    "llama": lambda: LlamaConfig(**WIDE),
    "llama-llama3-rope": lambda: LlamaConfig(**WIDE, rope_parameters=LLAMA3),
    "llama-linear": lambda: LlamaConfig(**WIDE, rope_parameters=LINEAR),
    # 256 positions: four times those that YaRN extends. Longer texts are renumbered.
    "llama-yarn": lambda: LlamaConfig(
        **WIDE | {"max_position_embeddings": 256}, rope_parameters=YARN
    ),
    "mistral": lambda: MistralConfig(**WIDE, sliding_window=None),
    "qwen2": lambda: Qwen2Config(**WIDE),
    "qwen3": lambda: Qwen3Config(**WIDE, head_dim=32),
    "gemma": lambda: GemmaConfig(**WIDE, head_dim=32),
    "granite": lambda: GraniteConfig(**WIDE, attention_multiplier=32**-0.5),
    "phi3": lambda: Phi3Config(**WIDE, rope_parameters=PARTIAL),
}


def saved(family: str, folder: Path, **changes: Any) -> tuple[Any, Path]:
    """Save a model of a family; return the model, in float32, and its folder.

    Args:
        family: of `CONFIGS`.
        folder: where its own folder is made.
        changes: to its configuration.
    """
    torch.manual_seed(0)
    config = CONFIGS[family]()
    config.update(changes)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    model.save_pretrained(folder / family)
    return model, folder / family
