"""The slow, obvious twin: no cache, keys unrotated, every position computed afresh.

Every token is given at position 0, so keys and queries come unrotated. Each query attends alone, to
the tokens that its layer holds at that moment: what a query at position q sees of a key at position
k is the key rotated by `k - q`, with the textbook formula. Which tokens a layer holds comes from
the slow reference of the core, token numbers and all; `slow_positions` says where they stand.
"""

import sys
from collections.abc import Callable
from functools import cache as memoize
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from lacache.policies import Full, Groups, Ladder, ShrinkingWindow, Streaming
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

    rope = text.rope_parameters
    trained_length = text.max_position_embeddings
    if rope.get("rope_type") in ("dynamic", "longrope"):
        # Beyond it frequencies would change.
        trained_length = rope.get("original_max_position_embeddings") or trained_length
    standing = slow_positions(sized, kept, trained_length)

    def visible(layer: int, number: int) -> list[tuple[list[int], list[int]]]:
        """Tokens and their positions, for all KV heads of a layer or each, with token `number`."""
        if layer in growing:
            depth = growing.index(layer)
            return list(zip(kept(number)[depth], standing(number)[depth], strict=True))
        tokens = list(range(max(0, number + 1 - text.sliding_window), number + 1))
        return [(tokens, tokens)]

    def rotated(layer: int, keys: Tensor, positions: list[int]) -> Tensor:
        """Keys [B, H, N, D] as the newest of them sees them."""
        if not has_rope[layer]:
            return keys
        inv_freq = buffers.get("inv_freq", buffers.get(f"{types[layer]}_inv_freq"))
        return turn(keys, torch.tensor(positions) - positions[-1], inv_freq)

    def attention(
        module: Any, query: Tensor, keys: Tensor, values: Tensor, *_: Any, **options: Any
    ) -> tuple[Tensor, None]:
        layer = module.layer_idx
        out = []
        for number in range(query.shape[2]):
            heads = visible(layer, number)
            now = query[:, :, number : number + 1]
            if len(heads) == 1:
                [(tokens, positions)] = heads
                seen = rotated(layer, keys[:, :, tokens], positions)
                out.append(attend(module, now, seen, values[:, :, tokens], None, **options)[0])
                continue
            shared = query.shape[1] // keys.shape[1]
            by_head = []
            for head, (tokens, positions) in enumerate(heads):
                seen = rotated(layer, keys[:, head : head + 1, tokens], positions)
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


Kept = Callable[[int], list[list[list[int]]]]
"""The tokens of each layer, for all its KV heads or each, with the newest token's number."""


def slow_positions(sized: Sized, kept: Kept, trained_length: int) -> Kept:
    """Where the tokens of `kept` stand when the newest of them attends."""
    rules = _rules(sized, kept(0))
    # Of every token, for each layer and head; tokens that were renumbered stand elsewhere.
    places: list[list[dict[int, int]]] = [[{} for _ in heads] for heads in rules]
    base = 0
    seen: list[list[list[list[int]]]] = []

    def compacts(number: int) -> bool:
        return any(
            len(now) <= len(before)
            for one, other in zip(kept(number), kept(number - 1), strict=True)
            for now, before in zip(one, other, strict=True)
        )

    def advance(number: int) -> None:
        nonlocal base
        held = kept(number)
        originals = any(name == "original" for heads in rules for name, _ in heads)
        if number and originals and compacts(number):
            following = number + 1
            while following - base <= trained_length and not compacts(following):
                following += 1
            if following - base > trained_length:
                base = number - max(len(tokens) - 1 for heads in held for tokens in heads)
                for place, heads in zip(places, held, strict=True):
                    for one, tokens in zip(place, heads, strict=True):
                        slots = enumerate(tokens[:-1], number - base - len(tokens) + 1)
                        one.update({token: slot for slot, token in slots})
        standing = []
        for place, heads, how in zip(places, held, rules, strict=True):
            for one in place:
                one[number] = number - base
            standing.append([_stand(*each) for each in zip(heads, place, how, strict=True)])
        seen.append(standing)

    def positions(number: int) -> list[list[list[int]]]:
        while len(seen) <= number:
            advance(len(seen))
        return seen[number]

    return positions


def _rules(sized: Sized, held: list[list[list[int]]]) -> list[list[tuple[str, int]]]:
    """For each layer and head, what its policy calls positions, and its sinks."""
    _, policy = sized
    if not isinstance(policy, Groups):
        return [[_rule(policy) for _ in heads] for heads in held]
    rules = [[_rule(Full()) for _ in heads] for heads in held]
    for group in policy.groups:
        for member in group.members:
            layer, only = (member, None) if isinstance(member, int) else member
            for head in range(len(rules[layer])):
                if only in (None, head):
                    rules[layer][head] = _rule(group.policy)
    return rules


def _rule(policy: Any) -> tuple[str, int]:
    return ("slots", 0) if isinstance(policy, Full) else (policy.positions, policy.sinks)


def _stand(tokens: list[int], places: dict[int, int], rule: tuple[str, int]) -> list[int]:
    """Where the tokens of a head stand, in slot order."""
    name, sinks = rule
    if name == "slots":
        return list(range(len(tokens)))
    standing = [places[token] for token in tokens]
    for sink in range(sinks):
        if len(tokens) > sinks:
            standing[sink] = standing[sinks] - sinks + sink
    return standing


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
