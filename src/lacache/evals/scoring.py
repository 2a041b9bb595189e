"""Score a text with a cache: the loss of each token given what the cache holds."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from lacache.cache import HookedCache
from lacache.errors import InputError, ModelError
from lacache.models.decoder import cache_argument


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
