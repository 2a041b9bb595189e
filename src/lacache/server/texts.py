"""The texts of one request, as they are told of."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import final

from starlette.concurrency import run_in_threadpool

from lacache.server.answers import Answer, usage
from lacache.server.engine_thread import EngineThread
from lacache.server.job import Began, Event, Failed, Finished, HasRead, Job, Piece
from lacache.server.metrics import RequestMetrics
from lacache.server.schemas import Json, TextRequest


@final
class Texts:
    """From jobs to an answer; at the end `close`, whatever came of them.

    Args:
        request: what came.
        tokens: of its prompt.
        answer: the frame.
        texts_of: the text that each of some tokens completes.
        metrics: of the request.
    """

    def __init__(
        self,
        request: TextRequest,
        tokens: list[int],
        answer: Answer,
        texts_of: Callable[[list[int]], list[str]],
        metrics: RequestMetrics,
    ) -> None:
        self._request = request
        self._tokens = tokens
        self._answer = answer
        self._texts_of = texts_of
        self._metrics = metrics
        self._thread: EngineThread | None = None
        self._jobs: list[Job] = []
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._num_reused = 0
        self._num_new = 0

    def tell(self, index: int, event: Event) -> None:
        """Something of the text with that number, from any thread."""
        self._metrics.observe(event)
        # A loop that has ended has nobody to tell.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

    def submit(self, thread: EngineThread, jobs: list[Job]) -> None:
        """Ask for them.

        Raises:
            ServerError: too many texts wait, or the server ends.
        """
        thread.submit(jobs)
        self._thread, self._jobs = thread, jobs

    def close(self) -> None:
        """Nobody wants them any more; again and again does no harm."""
        if self._thread is not None:
            self._thread.forget(self._jobs)
            self._thread = None

    async def whole(self) -> Json:
        """All at once."""
        pieces: list[list[Piece]] = [[] for _ in self._jobs]
        reasons = [""] * len(self._jobs)
        async for index, event in self._told():
            if isinstance(event, Piece):
                pieces[index].append(event)
            elif isinstance(event, Finished):
                reasons[index] = event.reason
                pieces[index].append(Piece("", event.tokens))
        return self._answer.whole(pieces, reasons, self._usage())

    async def chunks(self) -> AsyncIterator[Json]:
        """Piece by piece."""
        inspects = self._request.inspect
        for index in range(len(self._jobs)):
            first = self._answer.first(index)
            if first is not None:
                yield first
        if inspects:
            prompt = await run_in_threadpool(self._texts_of, self._tokens)
            yield self._answer.inspected({"prompt": prompt})
        async for index, event in self._told():
            if isinstance(event, Piece):
                yield self._answer.piece(index, event)
            elif isinstance(event, Finished):
                yield self._answer.last(index, event)
            if inspects:
                told = _inspected(event)
                if told:
                    yield self._answer.inspected(told)
        if self._request.includes_usage:
            yield self._answer.counts(self._usage())

    async def _told(self) -> AsyncIterator[tuple[int, Event]]:
        """Until all have ended; raises why one has not."""
        left = len(self._jobs)
        while left:
            index, event = await self._events.get()
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Began) and index == 0:
                self._num_reused = event.num_reused
            if isinstance(event, Finished):
                self._num_new += event.num_new
                left -= 1
            yield index, event

    def _usage(self) -> Json:
        # OpenAI counts the prompt once, however many texts it has.
        return usage(len(self._tokens), self._num_reused, self._num_new)


def _inspected(event: Event) -> Json:
    match event:
        case Began(num_seen, num_reused):
            return {"seen": num_seen, "reused": num_reused}
        case HasRead(num_tokens):
            return {"read": num_tokens}
        case Piece(_, tokens) | Finished(_, _, tokens) if tokens:
            return {"new": [token.text for token in tokens]}
    return {}
