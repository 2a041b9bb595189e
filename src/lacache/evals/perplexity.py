"""Perplexity from the negative log-likelihoods of a record, by position in the text.

`nll[i]` belongs to token `i + 1`: nothing comes before token 0, so it is not predicted.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, stdev
from typing import NamedTuple, final


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


def perplexity(nll: Sequence[float]) -> float:
    """Return the exponential of the mean negative log-likelihood in nats."""
    return math.exp(fmean(nll))


def doubling_edges(first: int, tokens: int) -> list[int]:
    """Return the positions 0, first, 2 first, 4 first, ... and `tokens`."""
    edges = [0]
    edge = first
    while edge < tokens:
        edges.append(edge)
        edge *= 2
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
