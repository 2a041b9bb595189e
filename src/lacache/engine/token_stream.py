"""The tokens of one request, as they come."""

from collections.abc import Callable
from typing import final

from lacache.engine.logprobs import TokenLogprobs
from lacache.engine.request import Request
from lacache.engine.writer import Written
from lacache.errors import ModelError, UnsupportedOperationError


@final
class TokenStream(Written):
    """Yields new tokens; taking one runs the engine until it is there.

    Closing it, or leaving a `with` block, ends the request: the text is then what the model has
    read of the prompt, and what was yielded. A stream that nobody holds any more is closed.
    """

    def __init__(
        self,
        request: Request,
        step: Callable[[], bool],
        close: Callable[[], None],
        drop: Callable[[], None],
    ) -> None:
        """Not for users; `drop` may be called at any time, in the midst of a step too."""
        self._request = request
        self._step = step
        self._close = close
        self._drop = drop
        self._logprobs: TokenLogprobs | None = None

    @property
    def logprobs(self) -> TokenLogprobs | None:
        """Of the token that was taken last; None where they were not asked for."""
        return self._logprobs

    @property
    def stopped_by(self) -> str | None:
        """Why no more tokens come: "eos", "length" or "closed"; None while some may."""
        return None if self._request.ready else self._request.stopped_by

    @property
    def error(self) -> ModelError | None:
        """What taking the next token will raise, where that is known already."""
        return None if self._request.ready else self._request.error

    @property
    def num_ready(self) -> int:
        """Tokens chosen before they were asked for; in a session each waits until it is."""
        return len(self._request.ready)

    def __next__(self) -> int:
        request = self._request
        while not request.ready:
            if request.stopped_by is not None:
                raise StopIteration
            if not self._step() and not request.ready and request.stopped_by is None:
                raise UnsupportedOperationError(
                    "the text waits for a row, and all rows belong to open sessions or to texts "
                    "whose tokens nobody takes; close a session, or take those tokens"
                )
        token, self._logprobs = request.ready.popleft()
        return token

    def close(self) -> None:
        """End the request; again and again does no harm."""
        self._close()

    def __enter__(self) -> "TokenStream":
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._request.is_done:
            self._drop()
