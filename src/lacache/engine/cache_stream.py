"""Generation on a `LaCache` without an engine: any model and policy that the cache takes."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor

from lacache.cache import LaCache
from lacache.cache.report import CacheReport
from lacache.engine.generator import TextGenerator, TokenStream
from lacache.engine.sampler import Sampler
from lacache.engine.sampling import Sampling
from lacache.engine.sequence import validate_count, validate_eos_token_ids
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
    """Prefill `input_ids`, then yield new tokens, without end if nothing ends the stream.

    Memory is that of the cache: there is no list of the tokens so far, and no mask or position ids
    as long as the sequence. The model runs when the next token is asked for, not before.

    A caller may stop after any token. The cache has then processed the prompt and all yielded
    tokens but the last. To go on with the same cache, put that last token first:
    `stream(model, torch.cat([last, more], dim=1), cache)`. An exception from *within* a step, such
    as a KeyboardInterrupt, can leave layers that hold different tokens; the cache then raises until
    `cache.reset()`.

    Args:
        model: the model that the cache was made from.
        input_ids: new tokens [1, Q], Q >= 1, without those that the cache has seen.
        cache: new, or after earlier tokens of the same sequence.
        max_new_tokens: most tokens to yield; None is without end, 0 only prefills.
        sampling: how tokens are chosen; greedy by default. A sampler continues from its state.
        eos_token_ids: tokens that end the stream; the one that did is yielded too.
        on_progress: called after each chunk of the prompt with its number of tokens.

    Raises:
        InputError: an empty prompt, more than one sequence, or malformed `eos_token_ids`.
        ConfigError: a negative number of tokens.
    """
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2:
        shape = tuple(input_ids.shape) if isinstance(input_ids, Tensor) else type(input_ids)
        raise InputError(f"input_ids of shape {shape} must be a tensor [1, tokens]")
    if input_ids.shape[0] != 1:
        raise InputError(
            f"input_ids has {input_ids.shape[0]} sequences, which end at different tokens, and a "
            "stream takes one; make a cache and a stream for each, or use model.generate"
        )
    if input_ids.shape[1] == 0:
        raise InputError("the prompt is empty and at least 1 token is needed; give some text")
    validate_count("max_new_tokens", max_new_tokens)
    eos_token_ids = validate_eos_token_ids(eos_token_ids)
    sampler = sampling if isinstance(sampling, Sampler) else Sampler(sampling)
    sampler.see(input_ids)

    def steps() -> Iterator[int]:
        logits = cache.prefill(model, input_ids, on_progress)
        num_new = 0
        while num_new != max_new_tokens:
            token = sampler.choose(logits)
            num_new += 1
            yield token
            if token in eos_token_ids or num_new == max_new_tokens:
                return
            newest = torch.tensor([[token]], device=input_ids.device)
            logits = cache.prefill(model, newest)

    return steps()


@final
class CacheGenerator(TextGenerator):
    """A text generator for what the engine does not support: full caches and dense prefill too.

    Args:
        model: the model that the cache was made from.
        cache: a new cache.
        sampling: how tokens are chosen; greedy by default.
    """

    def __init__(self, model: Any, cache: LaCache, sampling: Sampling | None = None) -> None:
        self._model = model
        self._cache = cache
        self._sampler = Sampler(sampling)
        self._last: int | None = None

    def generate(
        self,
        tokens: Sequence[int] | Tensor,
        *,
        max_new_tokens: int | None = None,
        eos_token_ids: Collection[int] = (),
        on_progress: Callable[[int], None] | None = None,
    ) -> TokenStream:
        """See `TextGenerator.generate`."""
        last = [] if self._last is None else [self._last]
        given = torch.cat([torch.tensor(last, dtype=torch.long), torch.as_tensor(tokens).long()])
        if len(given) == 0:
            raise InputError("there is no token to go on from; give at least 1 token")
        eos_token_ids = validate_eos_token_ids(eos_token_ids)
        steps = stream(
            self._model,
            given[None].to(self._model.device),
            self._cache,
            max_new_tokens=max_new_tokens,
            sampling=self._sampler,
            eos_token_ids=eos_token_ids,
            on_progress=on_progress,
        )
        self._last = None
        return _CacheStream(steps, self._set_last, max_new_tokens, eos_token_ids)

    def drop_last(self) -> None:
        """See `TextGenerator.drop_last`."""
        self._last = None

    def report(self) -> CacheReport:
        """Return the report of the cache."""
        return self._cache.report()

    def close(self) -> None:
        """Reset the cache; idempotent."""
        self._cache.reset()
        self._last = None

    def _set_last(self, token: int) -> None:
        self._last = token


@final
class _CacheStream(TokenStream):
    def __init__(
        self,
        steps: Iterator[int],
        set_last: Callable[[int], None],
        max_new_tokens: int | None,
        eos_token_ids: frozenset[int],
    ) -> None:
        self._steps = steps
        self._set_last = set_last
        self._left = max_new_tokens
        self._eos_token_ids = eos_token_ids
        self._finish_reason: str | None = None

    @property
    def finish_reason(self) -> str | None:
        return self._finish_reason

    def __next__(self) -> int:
        if self._finish_reason is not None:
            raise StopIteration
        try:
            token = next(self._steps)
        except StopIteration:
            self._finish_reason = "length"
            raise
        self._set_last(token)
        if self._left is not None:
            self._left -= 1
        if token in self._eos_token_ids:
            self._finish_reason = "eos"
        elif self._left == 0:
            self._finish_reason = "length"
        return token

    def close(self) -> None:
        self._finish_reason = self._finish_reason or "closed"
