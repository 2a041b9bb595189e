"""Perplexity: the loss of each token given what a cache holds, and its means by position.

`nll[i]` belongs to token `i + 1`: nothing comes before token 0, so it is not predicted.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any, NamedTuple, final

import torch
from torch.nn.functional import cross_entropy

from lacache.cache import HookedCache
from lacache.errors import InputError, ModelError
from lacache.models.decoder import cache_argument


@final
class Bucket(NamedTuple):
    """Perplexity of the tokens `start <= token < stop`."""

    start: int
    stop: int
    perplexity: float


@final
class Difference(NamedTuple):
    """Difference of two mean negative log-likelihoods, in nats per token."""

    mean: float
    error: float

    @property
    def is_clear(self) -> bool:
        """Whether the difference is more than twice its standard error."""
        return abs(self.mean) > 2 * self.error


@torch.no_grad()
def score_tokens(
    model: Any,
    token_ids: Sequence[int],
    cache: HookedCache,
    *,
    chunk_size: int = 64,
    on_progress: Callable[[int], None] | None = None,
) -> list[float]:
    """Return the negative log-likelihoods in nats of the tokens 1, 2, ...

    Each token is scored given what the cache holds when it comes. `chunk_size` changes the result
    only by rounding. Memory is that of the cache and of one chunk's logits.

    Args:
        model: a causal language model of transformers.
        token_ids: at least two tokens.
        cache: an empty cache; it holds the tokens afterwards.
        chunk_size: most tokens per forward; forwards also end where a compaction is due.
        on_progress: called with the number of tokens after each forward.

    Raises:
        InputError: too few tokens, or a chunk size below 1.
        ModelError: the model returns something that is not a finite number.
    """
    if len(token_ids) < 2:
        raise InputError(
            f"a text of {len(token_ids)} tokens cannot be scored, as the first is not predicted; "
            "give at least 2"
        )
    if chunk_size < 1:
        raise InputError(f"chunk_size={chunk_size} must be at least 1; try chunk_size=64")
    ids = torch.tensor(token_ids, dtype=torch.long, device=model.device)[None]
    nll = torch.empty(len(token_ids) - 1)
    start = 0
    while start < len(token_ids):
        stop = start + min(chunk_size, cache.next_chunk(len(token_ids) - start))
        logits = model(
            input_ids=ids[:, start:stop], **cache_argument(model, cache), use_cache=True
        ).logits
        targets = ids[0, start + 1 : stop + 1]
        scores = cross_entropy(logits[0, : len(targets)].float(), targets, reduction="none")
        nll[start : start + len(targets)] = scores
        if on_progress is not None:
            on_progress(stop - start)
        start = stop
    wrong = (~nll.isfinite()).nonzero()
    if len(wrong):
        token = int(wrong[0]) + 1
        raise ModelError(
            f"the log-likelihood of token {token} is {-float(nll[token - 1])} and must be a finite "
            f"number; load the model in another type than {model.dtype}, such as float32"
        )
    values: list[float] = nll.tolist()
    return values


def perplexity(nll: Sequence[float]) -> float:
    """Return the exponential of the mean negative log-likelihood in nats."""
    return math.exp(fmean(nll))


def doubling_edges(first: int, tokens: int) -> list[int]:
    """Return the positions 0, first, 2 first, 4 first, ... and `tokens`."""
    edges = [0]
    while first < tokens:
        edges.append(first)
        first *= 2
    return [*edges, tokens]


def buckets(nll: Sequence[float], edges: Sequence[int]) -> list[Bucket]:
    """Return the perplexity between neighbouring edges, which must be increasing positions."""
    return [
        Bucket(start, stop, perplexity(nll[max(start - 1, 0) : stop - 1]))
        for start, stop in pairwise(edges)
        if stop > max(start, 1)
    ]


def running(nll: Sequence[float], window: int) -> list[Bucket]:
    """Return the perplexity of each window of `window` tokens, and of a last shorter one.

    A last window of less than half the length is merged into the one before it.
    """
    tokens = len(nll) + 1
    edges = list(range(0, tokens, window))
    if len(edges) > 1 and tokens - edges[-1] < window / 2:
        edges.pop()
    return buckets(nll, [*edges, tokens])


def last_seen(token_ids: Sequence[int]) -> list[int]:
    """Return how far back, in tokens, the same token last followed the same token.

    A model that still sees that place can continue as the text continued there, so a token whose
    distance is beyond the recent window is one that a longer memory can help with. This depends on
    the text alone, on no policy and no loss.

    Args:
        token_ids: a text [N].

    Returns:
        For each token but the first [N - 1], the distance; 0 where the pair occurs first.
    """
    places: dict[tuple[int, int], int] = {}
    distances = []
    for place, pair in enumerate(pairwise(token_ids), start=1):
        distances.append(place - places[pair] if pair in places else 0)
        places[pair] = place
    return distances


def difference(nll: Sequence[float], other: Sequence[float], block: int = 128) -> Difference:
    """Return the mean of `nll - other` over the same tokens, with its standard error.

    Neighbouring tokens are not independent, so the error is that of the means of blocks of
    `block` tokens (of two halves, where there are fewer than two blocks). Infinite for one token.
    """
    paired = [a - b for a, b in zip(nll, other, strict=True)]
    block = max(1, min(block, len(paired) // 2))
    means = [fmean(paired[i : i + block]) for i in range(0, len(paired) - block + 1, block)]
    error = stdev(means) / math.sqrt(len(means)) if len(means) > 1 else math.inf
    return Difference(fmean(paired), error)
