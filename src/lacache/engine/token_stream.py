"""The tokens of one request, as they come."""

from collections.abc import Callable
from typing import final

from lacache.core.errors import UnsupportedOperationError
from lacache.engine.request import Request
from lacache.engine.writer import Written


@final
class TokenStream(Written):
    """Yields new tokens; taking one runs the engine until it is there.

    Closing it, or leaving a `with` block, ends the request; what was yielded is then all that the
    sequence has written.
    """

    def __init__(
        self, request: Request, step: Callable[[], bool], close: Callable[[], None]
    ) -> None:
        self._request = request
        self._step = step
        self._close = close

    @property
    def stopped_by(self) -> str | None:
        """Why no more tokens come: "eos", "length" or "closed"; None while some may."""
        return None if self._request.ready else self._request.stopped_by

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
        return request.ready.popleft()

    def close(self) -> None:
        """End the request; again and again does no harm."""
        self._close()

    def __enter__(self) -> "TokenStream":
        return self

    def __exit__(self, *args: object) -> None:
        self.close()
