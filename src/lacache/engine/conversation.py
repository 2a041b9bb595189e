"""A conversation without end: each turn costs only its own tokens."""

from collections.abc import Callable, Iterator
from typing import Any, final

import torch

from lacache.cache import LaCache
from lacache.engine.chat_template import ChatTemplate
from lacache.engine.sampling import Sampling
from lacache.engine.stream import stream


@final
class Conversation:
    """Turns of a user and a model over one cache; no turn is ever given to the model again.

    Args:
        model: the model that the cache was made from.
        template: renders the turns. The cache should have `template.num_pinned` sinks, so that
            the system prompt is never evicted.
        cache: new.
        eos_token_ids: tokens that end a reply, beside the template's own.
        sampling: how tokens are chosen; greedy by default.
    """

    def __init__(
        self,
        model: Any,
        template: ChatTemplate,
        cache: LaCache,
        *,
        eos_token_ids: frozenset[int] = frozenset(),
        sampling: Sampling | None = None,
    ) -> None:
        self.cache = cache
        self._model = model
        self._template = template
        self._end_token_ids = eos_token_ids | template.end_token_ids
        self._sampling = sampling
        self._started = False
        self._unread: list[int] = []

    def reply(
        self,
        message: str,
        *,
        max_new_tokens: int | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> Iterator[int]:
        """Read a message and yield the tokens of the reply, without the one that ends it.

        The caller may stop after any token; the next message then follows what was yielded.

        Args:
            message: what the user says.
            max_new_tokens: how many tokens to yield at most; None is up to the end.
            on_progress: called with the number of the message's tokens after each piece.
        """
        if self._started:
            ids = self._unread + self._template.following(message)
        else:
            ids = self._template.first(message)
        self._started, self._unread = True, []
        tokens = stream(
            self._model,
            torch.tensor([ids], device=self._model.device),
            self.cache,
            max_new_tokens=max_new_tokens,
            sampling=self._sampling,
            eos_token_ids=self._end_token_ids,
            on_progress=on_progress,
        )
        for token in tokens:
            # The last token of a stream is unread. An end mark may stay so: the next turn brings
            # the template's own.
            if token not in self._end_token_ids:
                self._unread = [token]
                yield token
            else:
                self._unread = []

    def reset(self) -> None:
        """Start over, with the system prompt alone."""
        self.cache.reset()
        self._started, self._unread = False, []
