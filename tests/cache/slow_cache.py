"""The slow, obvious twin: token by token, keys unrotated, every position computed afresh.

Each token is fed at position 0, so keys and queries come unrotated. What a query at slot q sees of
a key at slot s is then the key rotated by `s - q`, with the textbook formula. Which tokens a layer
keeps comes from the slow reference of the core, token numbers and all.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import AttentionInterface, Cache
from transformers.cache_utils import CacheLayerMixin

from lacache.models.decoder import cache_argument
from lacache.policies import Groups, Ladder, ShrinkingWindow, Streaming
from lacache.policies.reference import reference_kept
from tests.policies.sized import Sized
from tests.policies.slow_window import shrunk


def rotate(keys: Tensor, shifts: Tensor, inv_freq: Tensor) -> Tensor:
    """Keys [B, H, N, D] moved by `shifts` [N]: pairs (i, i + d/2) of the first d turn."""
    half = len(inv_freq)
    angles = shifts[:, None].double() * inv_freq.double()
    first, second = keys[..., :half].double(), keys[..., half : 2 * half].double()
    turned = torch.polar(torch.ones_like(angles), angles) * torch.complex(first, second)
    moved = torch.cat([turned.real, turned.imag], dim=-1).to(keys.dtype)
    return torch.cat([moved, keys[..., 2 * half :]], dim=-1)


def rotate_neighbours(keys: Tensor, shifts: Tensor, inv_freq: Tensor) -> Tensor:
    """The same where pairs (2i, 2i + 1) of the first d turn."""
    half = len(inv_freq)
    apart = [keys[..., : 2 * half : 2], keys[..., 1 : 2 * half : 2], keys[..., 2 * half :]]
    moved = rotate(torch.cat(apart, dim=-1), shifts, inv_freq)
    pairs = torch.stack([moved[..., :half], moved[..., half : 2 * half]], dim=-1)
    return torch.cat([pairs.flatten(-2), moved[..., 2 * half :]], dim=-1)


class SlowLayer(CacheLayerMixin):
    """Every token ever seen, unrotated, and which of them this layer may look at."""

    def __init__(
        self, inv_freq: Tensor | None, window: int | None, turn: Callable[..., Tensor] = rotate
    ) -> None:
        super().__init__()
        self.inv_freq = inv_freq
        self.turn = turn
        self.window = window
        self.visible: list[list[int]] = []
        """Per KV head, or one list for all."""
        self.length = 0
        """Keys that are returned: the most that a head sees."""
        self.num_seen = 0

    @property
    def is_sliding(self) -> bool:
        return self.window is not None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = torch.cat([self.keys, key_states], dim=2)
        self.values = torch.cat([self.values, value_states], dim=2)
        heads = [self.look(head) for head in range(key_states.shape[1])]
        keys, values = zip(*heads, strict=True)
        return torch.cat(keys, dim=1), torch.cat(values, dim=1)

    def look(self, head: int) -> tuple[Tensor, Tensor]:
        """Keys, rotated, and values [B, 1, N, D] of one head."""
        visible = self.visible_to(head)
        keys = self.keys[:, head : head + 1, visible]
        values = self.values[:, head : head + 1, visible]
        if self.inv_freq is not None:
            slots = list(range(len(visible)))
            places = torch.tensor(slots if self.window is None else visible)
            keys = self.turn(keys, places - places[-1], self.inv_freq)
        filling = (0, 0, 0, self.length - len(visible))
        return pad(keys, filling), pad(values, filling)

    def visible_to(self, head: int) -> list[int]:
        return self.visible[head % len(self.visible)]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length, self.num_seen + 1 - self.length

    def get_seq_length(self) -> int:
        return self.num_seen

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1


class SlowCache(Cache):
    def __init__(self, model: Any, sized: Sized, recent: int) -> None:
        text = model.config
        types = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
        rope = getattr(text, "no_rope_layers", [1] * len(types))
        rotary = model.get_decoder().rotary_emb
        turn = rotate_neighbours if text.model_type in ("cohere", "glm") else rotate
        layers = []
        for layer_type, has_rope in zip(types, rope, strict=True):
            buffers = dict(rotary.named_buffers())
            inv_freq = buffers.get("inv_freq", buffers.get(f"{layer_type}_inv_freq"))
            window = text.sliding_window if layer_type == "sliding_attention" else None
            layers.append(SlowLayer(inv_freq if has_rope else None, window, turn))
        super().__init__(layers=layers)
        self.sized, self.recent = sized, recent
        self.num_heads = text.num_key_value_heads

    def expect(self, num_seen: int) -> None:
        """Say which tokens each layer sees when token number `num_seen` is the newest."""
        growing = [layer for layer in self.layers if layer.window is None]
        kept = slow_kept(self.sized, len(growing), self.num_heads, self.recent, num_seen + 1)
        for layer, heads in zip(growing, kept, strict=True):
            layer.visible, layer.length = heads, max(map(len, heads))
        for layer in self.layers:
            layer.num_seen = num_seen
            if layer.window is not None:
                start = max(0, num_seen + 1 - layer.window)
                layer.visible = [list(range(start, num_seen + 1))]
                layer.length = num_seen + 1 - start


def slow_kept(
    sized: Sized, num_layers: int, num_heads: int, recent: int, num_seen: int
) -> list[list[list[int]]]:
    """Per layer, the tokens that all KV heads, or each of them, hold after `num_seen` tokens."""
    capacity, policy = sized
    if not isinstance(policy, Groups):
        held = _of_policy(policy, capacity, num_layers, recent, num_seen)
        return [[tokens] for tokens in held]
    kept: list[list[list[int]]] = [[[] for _ in range(num_heads)] for _ in range(num_layers)]
    for group in policy.groups:
        pairs = [
            (member, head) if isinstance(member, int) else member
            for member in group.members
            for head in (range(num_heads) if isinstance(member, int) else (0,))
        ]
        depths = sorted({layer for layer, _ in pairs})
        held = _of_policy(group.policy, group.capacity, len(depths), recent, num_seen)
        for layer, head in pairs:
            kept[layer][head] = held[depths.index(layer)]
    return kept


def _of_policy(
    policy: Any, capacity: int | None, num_layers: int, recent: int, num_seen: int
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
            evict_batch=int(policy.evict_batch),
            geometry=policy.geometry,
            unit=policy.unit,
            window_layers=policy.window_layers,
        )[1]
    tokens: list[int] = []
    for token in range(num_seen):
        if isinstance(policy, Streaming) and len(tokens) == capacity:
            del tokens[policy.sinks : policy.sinks + int(policy.evict_batch)]
        if isinstance(policy, ShrinkingWindow):
            assert capacity is not None
            tokens = shrunk(policy, capacity, tokens, token)
        tokens.append(token)
    return [tokens] * num_layers


def feed(model: Any, cache: SlowCache, ids: Tensor, number: int) -> Tensor:
    """Logits [B, 1, V] after token `number` of `ids`, in a forward of its own."""
    cache.expect(number)
    output = model(
        input_ids=ids[:, number : number + 1],
        position_ids=torch.zeros(1, 1, dtype=torch.long),
        **cache_argument(model, cache),
        use_cache=True,
    )
    logits: Tensor = output.logits
    return logits


@torch.no_grad()
def slow_logits(model: Any, ids: Tensor, sized: Sized, recent: int = 0) -> Tensor:
    """Logits [B, Q, V] of every token."""
    cache = SlowCache(model, sized, recent)
    if not isinstance(sized[1], Groups):
        return torch.cat([feed(model, cache, ids, i) for i in range(ids.shape[1])], dim=1)
    before = model.config._attn_implementation
    AttentionInterface.register("slow_twin", head_by_head(cache))
    model.set_attn_implementation("slow_twin")
    try:
        return torch.cat([feed(model, cache, ids, i) for i in range(ids.shape[1])], dim=1)
    finally:
        model.set_attn_implementation(before)


def head_by_head(cache: SlowCache) -> Callable[..., tuple[Tensor, None]]:
    """Textbook attention of one query [B, Hq, 1, D], each head over what it sees alone."""

    def attention(
        module: Any, query: Tensor, keys: Tensor, values: Tensor, *_: Any, scaling: float, **__: Any
    ) -> tuple[Tensor, None]:
        layer = cache.layers[module.layer_idx]
        shared = query.shape[1] // keys.shape[1]
        out = []
        for head in range(query.shape[1]):
            seen = len(layer.visible_to(head // shared))
            own_keys = keys[:, head // shared, :seen]
            scores = query[:, head] @ own_keys.transpose(-1, -2) * scaling
            out.append(scores.softmax(-1) @ values[:, head // shared, :seen])
        return torch.stack(out, dim=2), None

    return attention


@torch.no_grad()
def slow_generate(model: Any, ids: Tensor, sized: Sized, recent: int, num_new: int) -> Tensor:
    """Greedy continuation [B, Q + num_new] of `ids`."""
    cache = SlowCache(model, sized, recent)
    end = ids.shape[1] + num_new
    for number in range(end - 1):
        logits = feed(model, cache, ids, number)
        if number + 1 == ids.shape[1]:
            ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids
