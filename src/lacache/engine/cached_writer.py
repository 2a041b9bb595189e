"""A text over a transformers cache, for what the engine does not take."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor

from lacache.cache import LaCache
from lacache.cache.report import CacheReport
from lacache.engine.checked import checked_ends
from lacache.engine.sampler import Sampler
from lacache.engine.sampling import Sampling
from lacache.engine.stream import stream
from lacache.engine.writer import Writer, Written
from lacache.errors import InputError


@final
class CachedWriter(Writer):
    """Any model and plan that `LaCache` takes, a full cache and dense prefill among them.

    Args:
        model: the model that the cache was made from.
        cache: new.
        sampling: how tokens are chosen; greedy by default.
    """

    def __init__(self, model: Any, cache: LaCache, sampling: Sampling | None = None) -> None:
        self._model = model
        self._cache = cache
        self._sampler = Sampler(sampling)
        self._last: int | None = None

    def write(
        self,
        tokens: Sequence[int] | Tensor,
        *,
        max_new_tokens: int | None = None,
        eos_token_ids: Collection[int] = (),
        on_progress: Callable[[int], None] | None = None,
    ) -> Written:
        """See `Writer.write`."""
        last = [] if self._last is None else [self._last]
        given = torch.cat([torch.tensor(last, dtype=torch.long), torch.as_tensor(tokens).long()])
        if len(given) == 0:
            raise InputError("there is no token to go on from; give at least 1 token")
        ends = checked_ends(eos_token_ids)
        steps = stream(
            self._model,
            given[None].to(self._model.device),
            self._cache,
            max_new_tokens=max_new_tokens,
            sampling=self._sampler,
            eos_token_ids=ends,
            on_progress=on_progress,
        )
        self._last = None
        return _CachedWritten(steps, self._note, max_new_tokens, ends)

    def drop_last(self) -> None:
        """See `Writer.drop_last`."""
        self._last = None

    def report(self) -> CacheReport:
        """That of the cache."""
        return self._cache.report()

    def close(self) -> None:
        """Forget everything."""
        self._cache.reset()
        self._last = None

    def _note(self, token: int) -> None:
        self._last = token


@final
class _CachedWritten(Written):
    def __init__(
        self,
        steps: Iterator[int],
        note: Callable[[int], None],
        max_new_tokens: int | None,
        eos_token_ids: frozenset[int],
    ) -> None:
        self._steps = steps
        self._note = note
        self._left = max_new_tokens
        self._ends = eos_token_ids
        self._stopped_by: str | None = None

    @property
    def stopped_by(self) -> str | None:
        return self._stopped_by

    def __next__(self) -> int:
        if self._stopped_by is not None:
            raise StopIteration
        try:
            token = next(self._steps)
        except StopIteration:
            self._stopped_by = "length"
            raise
        self._note(token)
        if self._left is not None:
            self._left -= 1
        if token in self._ends:
            self._stopped_by = "eos"
        elif self._left == 0:
            self._stopped_by = "length"
        return token

    def close(self) -> None:
        self._stopped_by = self._stopped_by or "closed"
