"""From a request to jobs, and from what becomes of them to an answer."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, final

from jinja2 import TemplateError

from lacache.core.errors import InputError
from lacache.engine.checked import checked_tokens
from lacache.engine.sampling import Sampling
from lacache.engine.stop import StopStrings
from lacache.server.answers import Answer, Json, usage
from lacache.server.engine_thread import EngineThread
from lacache.server.job import Event, Failed, Finished, Job, Piece
from lacache.server.limits import Limits
from lacache.server.schemas import ChatRequest, CompletionRequest, TextRequest


@final
@dataclass(frozen=True)
class Model:
    """What is served.

    Args:
        name: as clients call it.
        tokenizer: of transformers.
        eos_token_ids: tokens that end a text.
        vocab_size: tokens that the model knows.
    """

    name: str
    tokenizer: Any
    eos_token_ids: frozenset[int]
    vocab_size: int


@final
class Service:
    """Texts for requests, through one engine."""

    def __init__(self, thread: EngineThread, model: Model, limits: Limits) -> None:
        self._thread = thread
        self.model = model
        self.limits = limits

    def prompt(self, request: CompletionRequest | ChatRequest) -> list[int]:
        """The tokens of a request's prompt.

        Raises:
            InputError: there are none, or too many; or the chat template refuses the messages.
        """
        tokens = self._tokens(request)
        if not tokens:
            raise InputError("the prompt is empty and at least 1 token is needed; give some text")
        if len(tokens) > self.limits.prompt_tokens:
            raise InputError(
                f"the prompt has {len(tokens)} tokens, and this server reads at most "
                f"{self.limits.prompt_tokens}; shorten it"
            )
        checked_tokens(tokens, self.model.vocab_size)
        return tokens

    def _tokens(self, request: CompletionRequest | ChatRequest) -> list[int]:
        tokenizer = self.model.tokenizer
        if isinstance(request, CompletionRequest):
            if isinstance(request.prompt, list):
                return request.prompt
            ids: list[int] = tokenizer(request.prompt, verbose=False).input_ids
            return ids
        if not tokenizer.chat_template:
            raise InputError("the model has no chat template; use /v1/completions")
        messages = [message.model_dump() for message in request.messages]
        try:
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise InputError(f"the chat template refuses the messages: {error}") from error
        chat: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return chat

    async def answer(self, request: CompletionRequest | ChatRequest) -> Json:
        """All texts of a request at once."""
        tokens = self.prompt(request)
        texts, reasons = [""] * request.n, [""] * request.n
        num_new = 0
        with self._jobs(request, tokens) as events:
            async for index, event in _told(events, request.n):
                if isinstance(event, Piece):
                    texts[index] += event.text
                else:
                    reasons[index] = event.reason
                    num_new += event.num_new
        frame = Answer(self.model.name, is_chat=isinstance(request, ChatRequest))
        return frame.whole(texts, reasons, usage(len(tokens), num_new))

    def stream(self, request: CompletionRequest | ChatRequest) -> AsyncIterator[Json]:
        """The texts of a request piece by piece. What is wrong is raised before the first."""
        tokens = self.prompt(request)
        jobs = self._jobs(request, tokens)
        events = jobs.__enter__()
        frame = Answer(self.model.name, is_chat=isinstance(request, ChatRequest))

        async def pieces() -> AsyncIterator[Json]:
            num_new = 0
            try:
                for index in range(request.n):
                    first = frame.first(index)
                    if first is not None:
                        yield first
                async for index, event in _told(events, request.n):
                    if isinstance(event, Piece):
                        yield frame.piece(index, event.text)
                    else:
                        num_new += event.num_new
                        yield frame.last(index, event.reason)
                if request.tells_usage:
                    yield frame.counts(usage(len(tokens), num_new))
            finally:
                jobs.__exit__(None, None, None)

        return pieces()

    @contextmanager
    def _jobs(
        self, request: CompletionRequest | ChatRequest, tokens: list[int]
    ) -> Iterator["asyncio.Queue[tuple[int, Event]]"]:
        """The events of a request's texts, by their number. At the end nobody wants them any more.

        Raises:
            BusyError: too many texts wait.
            ClosedError: the server ends.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

        def tell(index: int, event: Event) -> None:
            # A loop that has ended has nobody to tell.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(events.put_nowait, (index, event))

        jobs = [
            Job(
                tokens,
                self._num_new(request),
                _sampling(request, index),
                self.model.eos_token_ids,
                StopStrings(request.stops),
                partial(tell, index),
                self.limits.seconds,
            )
            for index in range(request.n)
        ]
        self._thread.submit(jobs)
        try:
            yield events
        finally:
            for job in jobs:
                job.give_up()

    def _num_new(self, request: CompletionRequest | ChatRequest) -> int:
        asked = request.max_tokens
        if isinstance(request, ChatRequest):
            asked = request.max_completion_tokens or asked
        return min(asked or self.limits.new_tokens, self.limits.new_tokens)


async def _told(
    events: "asyncio.Queue[tuple[int, Event]]", num_texts: int
) -> AsyncIterator[tuple[int, Piece | Finished]]:
    """What is told of some texts, until all have ended; raises why one has not."""
    while num_texts:
        index, event = await events.get()
        if isinstance(event, Failed):
            raise event.error
        num_texts -= isinstance(event, Finished)
        yield index, event


def _sampling(request: TextRequest, index: int) -> Sampling:
    """Of one of a request's texts; each has random numbers of its own."""
    return Sampling(
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        seed=None if request.seed is None else (request.seed + index) % 2**63,
    )
