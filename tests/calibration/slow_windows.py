"""The obvious twin: a Llama in loops, one query and one head at a time."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def slow_logits(
    model: Any, token_ids: Sequence[int], keep: Tensor, *, window: int, sinks: int
) -> Tensor:
    """Logits [N, V] of a float32 Llama whose KV heads see all tokens only where `keep` says so."""
    config = model.config
    group = config.num_attention_heads // config.num_key_value_heads
    width = config.head_dim
    hidden = model.model.embed_tokens(torch.tensor(token_ids))
    for number, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        normed = layer.input_layernorm(hidden)
        queries = attention.q_proj(normed).view(len(token_ids), -1, width)
        keys = attention.k_proj(normed).view(len(token_ids), -1, width)
        values = attention.v_proj(normed).view(len(token_ids), -1, width)
        rows = []
        for now in range(len(token_ids)):
            heads = []
            for head in range(config.num_attention_heads):
                kv_head = head // group
                seen = range(now + 1)
                if not keep[number, kv_head]:
                    seen = [t for t in seen if t < sinks or now - t < window]
                query = _rotated(queries[now, head], now, config)
                scores = torch.stack(
                    [query @ _rotated(keys[t, kv_head], t, config) for t in seen]
                ) / math.sqrt(width)
                weights = scores.softmax(0)
                heads.append(
                    sum(w * values[t, kv_head] for w, t in zip(weights, seen, strict=True))
                )
            rows.append(torch.cat(heads))
        hidden = hidden + attention.o_proj(torch.stack(rows))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return model.lm_head(model.model.norm(hidden))


def _rotated(vector: Tensor, position: int, config: Any) -> Tensor:
    half = len(vector) // 2
    rotated = torch.empty_like(vector)
    for i in range(half):
        angle = position * config.rope_parameters["rope_theta"] ** (-i / half)
        a, b = vector[i], vector[i + half]
        rotated[i] = a * math.cos(angle) - b * math.sin(angle)
        rotated[i + half] = b * math.cos(angle) + a * math.sin(angle)
    return rotated
