"""The endless loop: read a prompt, then write token after token, in constant memory."""

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor

from lacache.cache import LaCache
from lacache.engine.checked import checked_ends, checked_length
from lacache.engine.sampler import Sampler
from lacache.engine.sampling import Sampling
from lacache.errors import InputError


def stream(
    model: Any,
    input_ids: Tensor,
    cache: LaCache,
    *,
    max_new_tokens: int | None = None,
    sampling: Sampling | Sampler | None = None,
    eos_token_ids: Collection[int] = (),
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[int]:
    """Read `input_ids`, then yield new tokens, for ever if nothing ends it.

    Memory is that of the cache: no list of the tokens so far, no mask or positions as long as
    the text. The model runs when the next token is asked for, not before.

    A caller may stop after any token. The cache has then read the prompt and all tokens yielded
    but the last, whatever made the stream end; so to go on with the same cache, put that last
    token first: `stream(model, torch.cat([last, more], dim=1), cache)`. An exception from
    *within* a step, such as a KeyboardInterrupt, can leave layers that hold different tokens; the
    cache then refuses to go on until `cache.reset()`.

    Args:
        model: the model that the cache was made from.
        input_ids: new tokens [1, Q], Q >= 1; what the cache has read is not given again.
        cache: new, or standing after what was read before.
        max_new_tokens: how many tokens to yield at most; None is without end, 0 only reads.
        sampling: how tokens are chosen; greedy by default. A sampler goes on from where it stands.
        eos_token_ids: tokens that end the stream; the one that did is yielded too.
        on_progress: called with the number of prompt tokens after each piece that was read.

    Raises:
        InputError: an empty prompt, more than one row, or no tokens to end at.
        ConfigError: a negative number of tokens.
    """
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2:
        shape = tuple(input_ids.shape) if isinstance(input_ids, Tensor) else type(input_ids)
        raise InputError(f"input_ids of shape {shape} must be a tensor [1, tokens]")
    if input_ids.shape[0] != 1:
        raise InputError(
            f"input_ids has {input_ids.shape[0]} rows, and rows end at different tokens, so one "
            "stream writes one row; make a cache and a stream for each, or use model.generate"
        )
    if input_ids.shape[1] == 0:
        raise InputError("the prompt is empty and at least 1 token is needed; give some text")
    checked_length(max_new_tokens)
    ends = checked_ends(eos_token_ids)
    sampler = sampling if isinstance(sampling, Sampler) else Sampler(sampling)
    sampler.see(input_ids)

    def steps() -> Iterator[int]:
        logits = cache.prefill(model, input_ids, on_progress)
        num_written = 0
        while num_written != max_new_tokens:
            token = sampler.choose(logits)
            num_written += 1
            yield token
            if token in ends or num_written == max_new_tokens:
                return
            newest = torch.tensor([[token]], device=input_ids.device)
            logits = cache.prefill(model, newest)

    return steps()
