"""The slow, obvious twin of a scored cache: token by token, head by head, in lists.

Each token is fed at position 0, so keys and queries come unrotated. A query in slot q sees a key
in slot s rotated by `s - q`, with the textbook formula. Scores are made from the papers' formulas
with loops over numbers.
"""

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from lacache.models.decoder import cache_argument
from tests.cache.slow_cache import rotate

Numbers = list[float]
Scores = list[Numbers]
"""For each KV head, a score for each token held, in slot order."""


class SlowScoredLayer(CacheLayerMixin):
    """Every token ever seen, unrotated, and which of them each head may look at."""

    is_sliding = False

    def __init__(self, inv_freq: Tensor) -> None:
        super().__init__()
        self.inv_freq = inv_freq
        self.visible: list[list[int]] = []
        self.attention: list[list[dict[int, float]]] = []
        """For each query so far and each KV head, the weight of each token that was visible."""
        self.num_seen = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.visible = [[] for _ in range(key_states.shape[1])]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = torch.cat([self.keys, key_states], dim=2)
        self.values = torch.cat([self.values, value_states], dim=2)
        for tokens in self.visible:
            tokens.append(self.num_seen)
        newest = len(self.visible[0]) - 1
        keys = [self.keys_at(head, -newest) for head in range(len(self.visible))]
        values = [self.values[0, head, tokens] for head, tokens in enumerate(self.visible)]
        return torch.stack(keys)[None], torch.stack(values)[None]

    def keys_at(self, head: int, origin: int) -> Tensor:
        """Keys [N, D] of a head, with slot s rotated to `origin + s`."""
        tokens = self.visible[head]
        keys = self.keys[:, head : head + 1, tokens]
        return rotate(keys, origin + torch.arange(len(tokens)), self.inv_freq)[0, 0]

    def look(self, weights: Tensor) -> None:
        """Note the newest query's attention [Hq, N]."""
        groups = weights.view(len(self.visible), -1, weights.shape[-1])
        self.attention.append(
            [
                {t: fmean(groups[h, :, s].tolist()) for s, t in enumerate(tokens)}
                for h, tokens in enumerate(self.visible)
            ]
        )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        # One column that broadcasts over however many keys the layer holds.
        return 1, self.num_seen

    def get_seq_length(self) -> int:
        return self.num_seen

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1


Score = Callable[[SlowScoredLayer], Scores]


@torch.no_grad()
def slow_read(
    model: Any,
    ids: Tensor,
    score: Score,
    capacities: Sequence[int],
    *,
    evict_batch: int,
    sinks: int,
    protected: Callable[[int], int],
    dense: int = 0,
) -> tuple[Tensor, list[list[list[int]]]]:
    """Logits [1, Q, V] and, per layer and head, the tokens held in the end.

    The first `dense` tokens are read without evicting; then the layers are cut to what they would
    hold without it. The model must be eager.
    """
    inv_freq = model.get_decoder().rotary_emb.inv_freq
    layers = [SlowScoredLayer(inv_freq) for _ in capacities]
    cache = Cache(layers=layers)
    held = [0] * len(capacities)
    logits = []
    for number in range(ids.shape[1]):
        if any(n == c for n, c in zip(held, capacities, strict=True)):
            held = [min(n, c - evict_batch) for n, c in zip(held, capacities, strict=True)]
        if number >= dense:
            for layer, count in zip(layers, held, strict=True):
                cut(layer, count, score, sinks, protected)
        for layer in layers:
            layer.num_seen = number
        output = model(
            input_ids=ids[:, number : number + 1],
            position_ids=torch.zeros(1, 1, dtype=torch.long),
            **cache_argument(model, cache),
            use_cache=True,
            output_attentions=True,
        )
        for layer, weights in zip(layers, output.attentions, strict=True):
            layer.look(weights[0, :, 0])
        held = [n + 1 for n in held]
        logits.append(output.logits)
    for layer, count in zip(layers, held, strict=True):
        cut(layer, count, score, sinks, protected)
    return torch.cat(logits, dim=1), [layer.visible for layer in layers]


def cut(
    layer: SlowScoredLayer, count: int, score: Score, sinks: int, protected: Callable[[int], int]
) -> None:
    """Evict the lowest scores of each head until `count` tokens are left."""
    if not layer.visible or len(layer.visible[0]) <= count:
        return
    scores = score(layer)
    for tokens, numbers in zip(layer.visible, scores, strict=True):
        num_held = len(tokens)
        may_go = range(sinks, num_held - protected(num_held))
        going = sorted(may_go, key=lambda slot: (numbers[slot], slot))[: num_held - count]
        tokens[:] = [token for slot, token in enumerate(tokens) if slot not in going]


def slow_knorm(layer: SlowScoredLayer) -> Scores:
    return [
        [-math.hypot(*key) for key in layer.keys_at(head, 0).tolist()]
        for head in range(len(layer.visible))
    ]


def slow_keydiff(layer: SlowScoredLayer) -> Scores:
    return [keydiff_numbers(layer.keys_at(h, 0).tolist()) for h in range(len(layer.visible))]


def keydiff_numbers(keys: list[Numbers]) -> Numbers:
    units = [[x / math.hypot(*key) for x in key] for key in keys]
    mean = [fmean(channel) for channel in zip(*units, strict=True)]
    dots = [sum(a * b for a, b in zip(unit, mean, strict=True)) for unit in units]
    return [-dot / math.hypot(*mean) for dot in dots]


def slow_lagkv(sinks: int, lag: int) -> Score:
    def score(layer: SlowScoredLayer) -> Scores:
        return [
            lagkv_numbers(
                layer.keys_at(h, 0).tolist(), layer.values[0, h, tokens].tolist(), sinks, lag
            )
            for h, tokens in enumerate(layer.visible)
        ]

    return score


def lagkv_numbers(keys: list[Numbers], values: list[Numbers], sinks: int, lag: int) -> Numbers:
    scores = [1.0] * len(keys)
    for partition, shares in enumerate(lagkv_shares(keys, values, sinks, lag)):
        for rank, i in enumerate(sorted(range(lag), key=shares.__getitem__)):
            scores[sinks + partition * lag + i] = rank / lag
    return scores


def lagkv_shares(keys: list[Numbers], values: list[Numbers], sinks: int, lag: int) -> list[Numbers]:
    """For each partition but the last, how much each of its tokens stands out."""
    found = []
    for start in range(sinks, len(keys) - 2 * lag + 1, lag):
        shares = [
            shares_in(states[start : start + lag], states[start + lag : start + 2 * lag])
            for states in (keys, values)
        ]
        found.append([(a + b) / 2 for a, b in zip(*shares, strict=True)])
    return found


def shares_in(here: list[Numbers], following: list[Numbers]) -> Numbers:
    low = [min(channel) for channel in zip(*following, strict=True)]
    high = [max(channel) for channel in zip(*following, strict=True)]
    spreads = [
        stdev((x - lo) / (hi - lo) for x, lo, hi in zip(state, low, high, strict=True))
        for state in here
    ]
    powers = [math.exp(spread - max(spreads)) for spread in spreads]
    return [power / sum(powers) for power in powers]


def slow_tova(layer: SlowScoredLayer) -> Scores:
    newest = layer.attention[-1]
    slots = range(len(layer.visible[0]))
    mean = [
        fmean(newest[h][tokens[slot]] for h, tokens in enumerate(layer.visible)) for slot in slots
    ]
    return [mean] * len(layer.visible)


def slow_h2o(layer: SlowScoredLayer) -> Scores:
    return [
        [sum(query[h].get(token, 0.0) for query in layer.attention) for token in tokens]
        for h, tokens in enumerate(layer.visible)
    ]


def slow_snapkv(window: int, kernel: int) -> Score:
    def score(layer: SlowScoredLayer) -> Scores:
        queries = layer.attention[-window:]
        scores = []
        for h, tokens in enumerate(layer.visible):
            mean = [fmean(query[h].get(token, 0.0) for query in queries) for token in tokens]
            before = mean[: len(mean) - window]
            pooled = [pooled_at(before, slot, kernel) for slot in range(len(before))]
            scores.append(pooled + [math.inf] * window)
        return scores

    return score


def pooled_at(numbers: Numbers, slot: int, kernel: int) -> float:
    reach = kernel // 2
    near = [numbers[s] for s in range(slot - reach, slot + reach + 1) if 0 <= s < len(numbers)]
    return sum(near) / kernel
