"""The slow, obvious twin: no cache, keys unrotated, every position computed afresh.

Every token stands at position 0, so keys and queries come unrotated. Each query attends alone, to
the tokens that its layer holds at that moment: what a query at slot q sees of a key at slot s is
the key rotated by `s - q`, with the textbook formula. Which tokens a layer holds comes from the
slow reference of the core, token numbers and all.
"""

import sys
from collections.abc import Callable
from functools import cache as memoize
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from lacache.policies import Groups, Ladder, ShrinkingWindow, Streaming
from lacache.policies.reference import reference_kept
from tests.policies.sized import Sized
from tests.policies.slow_groups import compacted_together
from tests.policies.slow_window import shrunk


def rotate(keys: Tensor, shifts: Tensor, inv_freq: Tensor) -> Tensor:
    """Keys [B, H, N, D] moved by `shifts` [N]: pairs (i, i + d/2) of the first d turn."""
    half = len(inv_freq)
    angles = shifts[:, None].double() * inv_freq.double()
    first, second = keys[..., :half].double(), keys[..., half : 2 * half].double()
    rotated = torch.polar(torch.ones_like(angles), angles) * torch.complex(first, second)
    moved = torch.cat([rotated.real, rotated.imag], dim=-1).to(keys.dtype)
    return torch.cat([moved, keys[..., 2 * half :]], dim=-1)


def rotate_neighbours(keys: Tensor, shifts: Tensor, inv_freq: Tensor) -> Tensor:
    """The same where pairs (2i, 2i + 1) of the first d turn."""
    half = len(inv_freq)
    apart = [keys[..., : 2 * half : 2], keys[..., 1 : 2 * half : 2], keys[..., 2 * half :]]
    moved = rotate(torch.cat(apart, dim=-1), shifts, inv_freq)
    pairs = torch.stack([moved[..., :half], moved[..., half : 2 * half]], dim=-1)
    return torch.cat([pairs.flatten(-2), moved[..., 2 * half :]], dim=-1)


@torch.no_grad()
def slow_logits(model: Any, ids: Tensor, sized: Sized, recent: int = 0) -> Tensor:
    """Logits [B, Q, V] of every token."""
    before = model.config._attn_implementation
    AttentionInterface.register("slow_twin", slow_attention(model, sized, recent, before))
    model.set_attn_implementation("slow_twin")
    try:
        positions = torch.zeros(1, ids.shape[1], dtype=torch.long)
        logits: Tensor = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        return logits
    finally:
        model.set_attn_implementation(before)


def slow_attention(
    model: Any, sized: Sized, recent: int, own: str
) -> Callable[..., tuple[Tensor, None]]:
    """Return an attention in which each query sees what its layer holds at that moment.

    Args:
        model: of transformers.
        sized: the policy.
        recent: of a ladder that has none of its own.
        own: name of the model's attention, which every query is given to alone.
    """
    text = model.config
    types = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    has_rope = getattr(text, "no_rope_layers", [1] * len(types))
    buffers = dict(model.get_decoder().rotary_emb.named_buffers())
    turn = rotate_neighbours if text.model_type in ("cohere", "glm") else rotate
    growing = [index for index, kind in enumerate(types) if kind != "sliding_attention"]

    @memoize
    def kept(number: int) -> list[list[list[int]]]:
        return slow_kept(sized, len(growing), text.num_key_value_heads, recent, number + 1)

    def visible(layer: int, number: int) -> list[list[int]]:
        """Tokens that all KV heads of a layer, or each of them, see with token `number`."""
        if layer in growing:
            return kept(number)[growing.index(layer)]
        return [list(range(max(0, number + 1 - text.sliding_window), number + 1))]

    def rotated(layer: int, keys: Tensor, tokens: list[int]) -> Tensor:
        """Keys [B, H, N, D] as the newest of them sees them."""
        if not has_rope[layer]:
            return keys
        places = torch.arange(len(tokens)) if layer in growing else torch.tensor(tokens)
        inv_freq = buffers.get("inv_freq", buffers.get(f"{types[layer]}_inv_freq"))
        return turn(keys, places - places[-1], inv_freq)

    def attention(
        module: Any, query: Tensor, keys: Tensor, values: Tensor, *_: Any, **options: Any
    ) -> tuple[Tensor, None]:
        layer = module.layer_idx
        out = []
        for number in range(query.shape[2]):
            heads = visible(layer, number)
            now = query[:, :, number : number + 1]
            if len(heads) == 1:
                [tokens] = heads
                seen = rotated(layer, keys[:, :, tokens], tokens)
                out.append(attend(module, now, seen, values[:, :, tokens], None, **options)[0])
                continue
            shared = query.shape[1] // keys.shape[1]
            by_head = []
            for head, tokens in enumerate(heads):
                seen = rotated(layer, keys[:, head : head + 1, tokens], tokens)
                own_queries = now[:, head * shared : (head + 1) * shared]
                scores = own_queries @ seen.transpose(-1, -2) * options["scaling"]
                by_head.append(scores.softmax(-1) @ values[:, head : head + 1, tokens])
            out.append(torch.cat(by_head, dim=1).transpose(1, 2))
        return torch.cat(out, dim=1), None

    def attend(module: Any, *args: Any, **options: Any) -> Any:
        if own == "eager":
            return sys.modules[type(module).__module__].eager_attention_forward(
                module, *args, **options
            )
        return AttentionInterface()[own](module, *args, **options)

    return attention


def slow_kept(
    sized: Sized, num_layers: int, num_heads: int, recent: int, num_seen: int
) -> list[list[list[int]]]:
    """Per layer, the tokens that all KV heads, or each of them, hold after `num_seen` tokens."""
    capacity, policy = sized
    if not isinstance(policy, Groups):
        batch = int(getattr(policy, "evict_batch", 0))
        held = _of_policy(policy, capacity, num_layers, recent, num_seen, batch)
        return [[tokens] for tokens in held]
    kept: list[list[list[int]]] = [[[] for _ in range(num_heads)] for _ in range(num_layers)]
    for group, (one, size, batch) in zip(policy.groups, compacted_together(policy), strict=True):
        pairs = [
            (member, head) if isinstance(member, int) else member
            for member in group.members
            for head in (range(num_heads) if isinstance(member, int) else (0,))
        ]
        depths = sorted({layer for layer, _ in pairs})
        held = _of_policy(one, size, len(depths), recent, num_seen, batch)
        for layer, head in pairs:
            kept[layer][head] = held[depths.index(layer)]
    return kept


def _of_policy(
    policy: Any, capacity: int | None, num_layers: int, recent: int, num_seen: int, batch: int
) -> list[list[int]]:
    """The tokens of each layer; every setting is in slots."""
    if isinstance(policy, Ladder):
        assert capacity is not None
        return reference_kept(
            num_seen,
            settled=False,
            num_layers=num_layers,
            capacity=capacity,
            span=policy.span or 0,
            overlap=policy.overlap or 0,
            sinks=policy.sinks,
            recent=recent if policy.recent is None else int(policy.recent),
            evict_batch=batch,
            geometry=policy.geometry,
            unit=policy.unit,
            window_layers=policy.window_layers,
        )[1]
    tokens: list[int] = []
    for token in range(num_seen):
        if isinstance(policy, Streaming) and len(tokens) == capacity:
            del tokens[policy.sinks : policy.sinks + batch]
        if isinstance(policy, ShrinkingWindow):
            assert capacity is not None
            tokens = shrunk(policy, capacity, tokens, token, batch)
        tokens.append(token)
    return [tokens] * num_layers


def slow_next(model: Any, ids: Tensor, sized: Sized, recent: int = 0) -> Tensor:
    """The likeliest token [B, Q] after each of `ids`."""
    return slow_logits(model, ids, sized, recent).argmax(-1)
