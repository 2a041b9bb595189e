"""Tiny random models of every supported family, float32, in fractions of a second."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma3TextConfig,
    GlmConfig,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

VOCAB = 64
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    # Large weights make the attention peaked, so that a wrong position shows.
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
HYBRID = {
    "num_hidden_layers": 7,
    "layer_types": [
        "sliding_attention",
        "full_attention",
        "full_attention",
        "sliding_attention",
        "full_attention",
        "sliding_attention",
        "full_attention",
    ],
    "sliding_window": 8,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.5, 2.0, 3.0],
    "long_factor": [2.0] * 4,
    "original_max_position_embeddings": 40,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}

FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**SHAPE),
    "llama-llama3-rope": lambda: LlamaConfig(**SHAPE, rope_parameters=LLAMA3),
    "llama-yarn": lambda: LlamaConfig(**SHAPE, rope_parameters=YARN),
    "mistral": lambda: MistralConfig(**SHAPE, sliding_window=None),
    "qwen2": lambda: Qwen2Config(**SHAPE),
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=8),
    "phi3": lambda: Phi3Config(
        **SHAPE,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.5,
        },
    ),
    "phi3-longrope": lambda: Phi3Config(
        **SHAPE, original_max_position_embeddings=40, rope_parameters=LONGROPE
    ),
    "llama-dynamic": lambda: LlamaConfig(
        **SHAPE | {"max_position_embeddings": 40}, rope_parameters=DYNAMIC
    ),
    "gpt-neox": lambda: GPTNeoXConfig(**SHAPE),
    "gemma3": lambda: Gemma3TextConfig(**SHAPE | HYBRID, head_dim=8),
    "gpt-oss": lambda: GptOssConfig(
        **SHAPE | HYBRID, head_dim=8, num_local_experts=2, num_experts_per_tok=1
    ),
    "cohere": lambda: CohereConfig(**SHAPE),
    "glm": lambda: GlmConfig(**SHAPE, head_dim=8),
    "olmo2": lambda: Olmo2Config(**SHAPE),
    "granite": lambda: GraniteConfig(**SHAPE, attention_multiplier=8**-0.5),
    "smollm3": lambda: SmolLM3Config(**SHAPE, no_rope_layers=[1, 1, 0, 1, 1]),
}
HYBRID_FAMILIES = ("gemma3", "gpt-oss")


def tiny_model(family: str, *, seed: int = 0, **changes: Any) -> Any:
    """A random model of a family, in eval mode."""
    torch.manual_seed(seed)
    config = FAMILIES[family]()
    for name, value in changes.items():
        setattr(config, name, value)
    model = AutoModelForCausalLM.from_config(config)
    if family == "gpt-oss":
        # Some of its weights are left empty by a plain construction.
        for weight in model.parameters():
            weight.data.normal_(0.0, 0.2)
    return model.eval()


def biased_model(largest: float = 40.0, **changes: Any) -> Any:
    """Return a Qwen2 whose keys have outliers: biases that are large where rotation is slow."""
    model = tiny_model("qwen2", **changes)
    generator = torch.Generator().manual_seed(3)
    for layer in model.model.layers:
        bias = layer.self_attn.k_proj.bias
        with torch.no_grad():
            bias.copy_(torch.randn(bias.shape, generator=generator))
            bias.view(2, 8)[:, [3, 7]] = torch.tensor([largest, -largest])
    return model


def random_ids(num_tokens: int, *, batch_size: int = 1, seed: int = 0) -> torch.Tensor:
    """Random tokens [batch_size, num_tokens], none of them padding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCAB, (batch_size, num_tokens), generator=generator)
