"""The response to a request: the events of its completions in OpenAI's format."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import final

from starlette.concurrency import run_in_threadpool
from torch import Tensor

from lacache.server.completion import (
    Completion,
    Delta,
    Event,
    Failed,
    Finished,
    Prefilled,
    Started,
)
from lacache.server.engine_thread import EngineThread
from lacache.server.metrics import RequestMetrics
from lacache.server.openai_format import ResponseFormat, usage
from lacache.server.schemas import Json, TextRequest


@final
class CompletionResponse:
    """Collects the events of a request's completions; `abort` must be called at the end.

    Args:
        request: the request.
        prompt: its token ids [Q].
        format: builds the JSON of the response.
        token_texts: returns the text that each of some tokens completes.
        metrics: of the request.
    """

    def __init__(
        self,
        request: TextRequest,
        prompt: Tensor,
        format: ResponseFormat,
        token_texts: Callable[[list[int]], list[str]],
        metrics: RequestMetrics,
    ) -> None:
        self._request = request
        self._prompt = prompt
        self._format = format
        self._token_texts = token_texts
        self._metrics = metrics
        self._thread: EngineThread | None = None
        self._completions: list[Completion] = []
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._num_reused = 0
        self._num_new = 0

    def put(self, index: int, event: Event) -> None:
        """Add an event of the completion with this index; from any thread."""
        self._metrics.observe(event)
        # After shutdown the loop is closed, and nobody reads the event.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, event))

    def submit(self, thread: EngineThread, completions: list[Completion]) -> None:
        """Start the completions.

        Raises:
            ServerError: the queue is full, or the server is shutting down.
        """
        thread.submit(completions)
        self._thread, self._completions = thread, completions

    def abort(self) -> None:
        """Abort the completions that still run; idempotent."""
        if self._thread is not None:
            self._thread.abort(self._completions)
            self._thread = None

    async def body(self) -> Json:
        """Wait for all completions, and return the body of a response without streaming."""
        deltas: list[list[Delta]] = [[] for _ in self._completions]
        reasons = [""] * len(self._completions)
        async for index, event in self._events():
            if isinstance(event, Delta):
                deltas[index].append(event)
            elif isinstance(event, Finished):
                reasons[index] = event.reason
                deltas[index].append(Delta("", event.tokens))
        return self._format.body(deltas, reasons, self._usage())

    async def chunks(self) -> AsyncIterator[Json]:
        """Yield the chunks of a streamed response."""
        inspects = self._request.inspect
        for index in range(len(self._completions)):
            first = self._format.first_chunk(index)
            if first is not None:
                yield first
        if inspects:
            prompt = await run_in_threadpool(self._token_texts, self._prompt.tolist())
            yield self._format.inspector_chunk({"prompt": prompt})
        async for index, event in self._events():
            if isinstance(event, Delta):
                yield self._format.delta_chunk(index, event)
            elif isinstance(event, Finished):
                yield self._format.last_chunk(index, event)
            if inspects:
                record = _inspector_record(event)
                if record:
                    yield self._format.inspector_chunk(record)
        if self._request.includes_usage:
            yield self._format.usage_chunk(self._usage())

    async def _events(self) -> AsyncIterator[tuple[int, Event]]:
        """Yield events until all completions have finished; raise the error of one that failed."""
        left = len(self._completions)
        while left:
            index, event = await self._queue.get()
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Started) and index == 0:
                self._num_reused = event.num_reused
            if isinstance(event, Finished):
                self._num_new += event.num_new
                left -= 1
            yield index, event

    def _usage(self) -> Json:
        # OpenAI counts the prompt once, however many completions it has.
        return usage(len(self._prompt), self._num_reused, self._num_new)


def _inspector_record(event: Event) -> Json:
    match event:
        case Started(num_seen, num_reused):
            return {"seen": num_seen, "reused": num_reused}
        case Prefilled(num_tokens):
            return {"prefilled": num_tokens}
        case Delta(_, tokens) | Finished(_, _, tokens) if tokens:
            return {"new": [token.text for token in tokens]}
    return {}
