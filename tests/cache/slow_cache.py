"""The slow, obvious twin: token by token, keys unrotated, every position computed afresh.

Each token is fed at position 0, so keys and queries come unrotated. What a query at slot q sees of
a key at slot s is then the key rotated by `s - q`, with the textbook formula. Which tokens a layer
keeps comes from the slow reference of the core, token numbers and all.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from lacache.core.ladder import LadderConfig
from lacache.core.reference import reference_kept


def rotate(keys: Tensor, shifts: Tensor, inv_freq: Tensor) -> Tensor:
    """Keys [B, H, N, D] moved by `shifts` [N]: pairs (i, i + d/2) of the first d turn."""
    half = len(inv_freq)
    angles = shifts[:, None].double() * inv_freq.double()
    first, second = keys[..., :half].double(), keys[..., half : 2 * half].double()
    turned = torch.polar(torch.ones_like(angles), angles) * torch.complex(first, second)
    moved = torch.cat([turned.real, turned.imag], dim=-1).to(keys.dtype)
    return torch.cat([moved, keys[..., 2 * half :]], dim=-1)


class SlowLayer(CacheLayerMixin):
    """Every token ever seen, unrotated, and which of them this layer may look at."""

    def __init__(self, inv_freq: Tensor | None, window: int | None) -> None:
        super().__init__()
        self.inv_freq = inv_freq
        self.window = window
        self.visible: list[int] = []
        self.num_seen = 0

    @property
    def is_sliding(self) -> bool:
        return self.window is not None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any) -> Any:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = torch.cat([self.keys, key_states], dim=2)
        self.values = torch.cat([self.values, value_states], dim=2)
        keys, values = self.keys[:, :, self.visible], self.values[:, :, self.visible]
        if self.inv_freq is not None:
            if self.window is None:
                places = torch.arange(len(self.visible))
            else:
                places = torch.tensor(self.visible)
            keys = rotate(keys, places - places[-1], self.inv_freq)
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return len(self.visible), self.num_seen + 1 - len(self.visible)

    def get_seq_length(self) -> int:
        return self.num_seen

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1


class SlowCache(Cache):
    def __init__(self, model: Any, config: LadderConfig, recent: int) -> None:
        text = model.config
        types = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
        rope = getattr(text, "no_rope_layers", [1] * len(types))
        rotary = model.get_decoder().rotary_emb
        layers = []
        for layer_type, has_rope in zip(types, rope, strict=True):
            buffers = dict(rotary.named_buffers())
            inv_freq = buffers.get("inv_freq", buffers.get(f"{layer_type}_inv_freq"))
            window = text.sliding_window if layer_type == "sliding_attention" else None
            layers.append(SlowLayer(inv_freq if has_rope else None, window))
        super().__init__(layers=layers)
        self.config, self.recent = config, recent

    def expect(self, num_seen: int) -> None:
        """Say which tokens each layer sees when token number `num_seen` is the newest."""
        growing = [layer for layer in self.layers if layer.window is None]
        _, kept = reference_kept(
            self.config, len(growing), self.recent, num_seen + 1, settled=False
        )
        for layer, tokens in zip(growing, kept, strict=True):
            layer.visible = tokens
        for layer in self.layers:
            layer.num_seen = num_seen
            if layer.window is not None:
                layer.visible = list(range(max(0, num_seen + 1 - layer.window), num_seen + 1))


def feed(model: Any, cache: SlowCache, ids: Tensor, number: int) -> Tensor:
    """Logits [B, 1, V] after token `number` of `ids`, in a forward of its own."""
    cache.expect(number)
    output = model(
        input_ids=ids[:, number : number + 1],
        position_ids=torch.zeros(1, 1, dtype=torch.long),
        past_key_values=cache,
        use_cache=True,
    )
    logits: Tensor = output.logits
    return logits


@torch.no_grad()
def slow_logits(model: Any, ids: Tensor, config: LadderConfig, recent: int) -> Tensor:
    """Logits [B, Q, V] of every token."""
    cache = SlowCache(model, config, recent)
    return torch.cat([feed(model, cache, ids, i) for i in range(ids.shape[1])], dim=1)


@torch.no_grad()
def slow_generate(
    model: Any, ids: Tensor, config: LadderConfig, recent: int, num_new: int
) -> Tensor:
    """Greedy continuation [B, Q + num_new] of `ids`."""
    cache = SlowCache(model, config, recent)
    end = ids.shape[1] + num_new
    for number in range(end - 1):
        logits = feed(model, cache, ids, number)
        if number + 1 == ids.shape[1]:
            ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids
