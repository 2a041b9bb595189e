"""The response to a request: the events of its completions as JSON in OpenAI's format."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import final
from uuid import uuid4

from starlette.concurrency import run_in_threadpool
from torch import Tensor

from lacache.engine.sampler import TokenLogprobs
from lacache.server.completion import (
    Completion,
    Delta,
    Event,
    Failed,
    Finished,
    Prefilled,
    Started,
    Token,
)
from lacache.server.engine_thread import EngineThread
from lacache.server.metrics import RequestMetrics
from lacache.server.schemas import ChatRequest, Json, TextRequest

TokenText = Callable[[int], str]
"""Function that returns the text of a single token."""


@final
class CompletionResponse:
    """Collects the events of a request's completions; `abort` must be called at the end.

    Args:
        request: the request.
        prompt: its token ids [Q].
        model: name of the model.
        token_text: returns the text of a single token, for log probabilities.
        token_texts: returns the text that each of some tokens completes.
        metrics: of the request.
    """

    def __init__(
        self,
        request: TextRequest,
        prompt: Tensor,
        model: str,
        token_text: TokenText,
        token_texts: Callable[[list[int]], list[str]],
        metrics: RequestMetrics,
    ) -> None:
        self._request = request
        self._is_chat = isinstance(request, ChatRequest)
        self._prompt = prompt
        self._token_text = token_text
        self._token_texts = token_texts
        self._metrics = metrics
        self._shared = {
            "id": f"{'chatcmpl' if self._is_chat else 'cmpl'}-{uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }
        self._thread: EngineThread | None = None
        self._completions: list[Completion] = []
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._num_reused = 0
        self._num_new = 0

    def put(self, index: int, event: Event) -> None:
        """Add an event of the completion with this index; from any thread."""
        self._metrics.observe(event)
        # After shutdown the loop is closed, and the event is not needed.
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
        choices = []
        for index, (parts, reason) in enumerate(zip(deltas, reasons, strict=True)):
            text = "".join(delta.text for delta in parts)
            tokens = tuple(token for delta in parts for token in delta.tokens)
            message = {"role": "assistant", "content": text}
            choices.append(self._choice(index, message, text, tokens, reason, name="message"))
        kind = "chat.completion" if self._is_chat else "text_completion"
        return {**self._shared, "object": kind, "choices": choices, "usage": self._usage()}

    async def chunks(self) -> AsyncIterator[Json]:
        """Yield the chunks of a streamed response."""
        inspects = self._request.inspect
        if self._is_chat:
            role = {"role": "assistant", "content": ""}
            for index in range(len(self._completions)):
                yield self._chunk(self._choice(index, role))
        if inspects:
            prompt = await run_in_threadpool(self._token_texts, self._prompt.tolist())
            yield self._inspector_chunk({"prompt": prompt})
        async for index, event in self._events():
            if isinstance(event, Delta):
                content = {"content": event.text}
                yield self._chunk(self._choice(index, content, event.text, event.tokens))
            elif isinstance(event, Finished):
                yield self._chunk(self._choice(index, {}, "", event.tokens, event.reason))
            if inspects:
                record = _inspector_record(event)
                if record:
                    yield self._inspector_chunk(record)
        if self._request.includes_usage:
            yield {**self._chunk(), "usage": self._usage()}

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
        return {
            "prompt_tokens": len(self._prompt),
            "completion_tokens": self._num_new,
            "total_tokens": len(self._prompt) + self._num_new,
            "prompt_tokens_details": {"cached_tokens": self._num_reused},
        }

    def _chunk(self, *choices: Json) -> Json:
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        return {**self._shared, "object": kind, "choices": list(choices)}

    def _inspector_chunk(self, record: Json) -> Json:
        """Return a chunk with data for the inspector, which OpenAI does not have."""
        return {**self._chunk(), "lacache": record}

    def _choice(
        self,
        index: int,
        message: Json,
        text: str = "",
        tokens: Sequence[Token] = (),
        reason: str | None = None,
        *,
        name: str = "delta",
    ) -> Json:
        content = {name: message} if self._is_chat else {"text": text}
        logprobs = self._logprobs(tokens)
        return {"index": index, **content, "finish_reason": reason, "logprobs": logprobs}

    def _logprobs(self, tokens: Sequence[Token]) -> Json | None:
        if self._request.num_top_logprobs is None or not tokens:
            return None
        form = _chat_logprobs if self._is_chat else _completion_logprobs
        pairs = [(token, token.logprobs) for token in tokens if token.logprobs is not None]
        return form(pairs, self._token_text)


def _inspector_record(event: Event) -> Json:
    match event:
        case Started(num_seen, num_reused):
            return {"seen": num_seen, "reused": num_reused}
        case Prefilled(num_tokens):
            return {"prefilled": num_tokens}
        case Delta(_, tokens) | Finished(_, _, tokens) if tokens:
            return {"new": [token.text for token in tokens]}
    return {}


_Pairs = Sequence[tuple[Token, TokenLogprobs]]


def _chat_logprobs(pairs: _Pairs, token_text: TokenText) -> Json:
    return {
        "content": [
            {
                **_entry(token_text(token.id), logprobs.logprob),
                "top_logprobs": [_entry(token_text(top), logprob) for top, logprob in logprobs.top],
            }
            for token, logprobs in pairs
        ],
        "refusal": None,
    }


def _completion_logprobs(pairs: _Pairs, token_text: TokenText) -> Json:
    return {
        "tokens": [token_text(token.id) for token, _ in pairs],
        "token_logprobs": [each.logprob for _, each in pairs],
        # Incomplete characters have the same text; the most likely token is kept.
        "top_logprobs": [
            {token_text(other): logprob for other, logprob in reversed(each.top)}
            for _, each in pairs
        ],
        "text_offset": [token.offset for token, _ in pairs],
    }


def _entry(text: str, logprob: float) -> Json:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
