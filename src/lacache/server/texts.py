"""The texts of one request, as they are told of."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import final

from lacache.server.answers import Answer, usage
from lacache.server.engine_thread import EngineThread
from lacache.server.job import Began, Event, Failed, Finished, HasRead, Job, Piece
from lacache.server.json import Json
from lacache.server.metrics import Clock
from lacache.server.schemas import TextRequest


@final
class Texts:
    """From jobs to an answer; at the end `close`, whatever came of them.

    Args:
        request: what came.
        tokens: of its prompt.
        answer: the frame.
        text_of: the text of one token.
        clock: hears of everything.
    """

    def __init__(
        self,
        request: TextRequest,
        tokens: list[int],
        answer: Answer,
        text_of: Callable[[int], str],
        clock: Clock,
    ) -> None:
        self._request = request
        self._tokens = tokens
        self._answer = answer
        self._text_of = text_of
        self._clock = clock
        self._jobs: list[Job] = []
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._num_reused = 0
        self._num_new = 0

    def tell(self, index: int, event: Event) -> None:
        """Something of the text with that number, from any thread."""
        # A loop that has ended has nobody to tell.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

    def submit(self, thread: EngineThread, jobs: list[Job]) -> None:
        """Ask for them.

        Raises:
            ServerError: too many texts wait, or the server ends.
        """
        thread.submit(jobs)
        self._jobs = jobs

    def close(self) -> None:
        """Nobody wants them any more."""
        for job in self._jobs:
            job.give_up()

    async def whole(self) -> Json:
        """All at once."""
        pieces: list[list[Piece]] = [[] for _ in self._jobs]
        reasons = [""] * len(self._jobs)
        async for index, event in self._told():
            if isinstance(event, Piece):
                pieces[index].append(event)
            elif isinstance(event, Finished):
                reasons[index] = event.reason
        return self._answer.whole(pieces, reasons, self._usage())

    async def chunks(self) -> AsyncIterator[Json]:
        """Piece by piece."""
        inspects = self._request.inspect
        for index in range(len(self._jobs)):
            first = self._answer.first(index)
            if first is not None:
                yield first
        if inspects:
            yield self._answer.inspected({"prompt": [*map(self._text_of, self._tokens)]})
        async for index, event in self._told():
            if isinstance(event, Piece):
                yield self._answer.piece(index, event)
            elif isinstance(event, Finished):
                yield self._answer.last(index, event.reason)
            if inspects:
                told = _inspected(event, self._text_of)
                if told:
                    yield self._answer.inspected(told)
        if self._request.tells_usage:
            yield self._answer.counts(self._usage())

    async def _told(self) -> AsyncIterator[tuple[int, Event]]:
        """Until all have ended; raises why one has not."""
        left = len(self._jobs)
        while left:
            index, event = await self._events.get()
            self._clock.tell(event)
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Began):
                self._num_reused += event.num_reused
            if isinstance(event, Finished):
                self._num_new += event.num_new
                left -= 1
            yield index, event

    def _usage(self) -> Json:
        # OpenAI counts the prompt once, however many texts it has.
        reused = self._num_reused // len(self._jobs)
        return usage(len(self._tokens), reused, self._num_new)


def _inspected(event: Event, text_of: Callable[[int], str]) -> Json:
    match event:
        case Began(num_seen, num_reused):
            return {"seen": num_seen, "reused": num_reused}
        case HasRead(num_tokens):
            return {"read": num_tokens}
        case Piece(_, tokens):
            return {"new": [text_of(token.id) for token in tokens]}
    return {}
