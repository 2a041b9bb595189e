"""The service: tokenizes prompts, and turns requests into completions on the engine they name."""

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, final

from jinja2 import TemplateError
from starlette.concurrency import run_in_threadpool
from torch import Tensor

from lacache.engine.conversation import ChatTemplate
from lacache.engine.detokenizer import Detokenizer, StopStrings
from lacache.engine.sampling import Sampling
from lacache.engine.sequence import validate_tokens
from lacache.errors import InputError
from lacache.server.completion import Completion, StateStore
from lacache.server.errors import NotFoundError
from lacache.server.metrics import Metrics, RequestMetrics
from lacache.server.response import CompletionResponse
from lacache.server.schemas import ChatRequest, CompletionRequest, TextRequest
from lacache.server.served_model import ServedModel
from lacache.server.session_store import SessionStore
from lacache.server.settings import Limits


@final
class Prompts:
    """Tokenizer of prompts: a model's tokenizer and chat template, and the limit of length.

    Args:
        tokenizer: a tokenizer of transformers.
        vocab_size: size of the model's vocabulary.
        limits: limits the length of a prompt.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, limits: Limits) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._limits = limits

    def tokens(self, request: CompletionRequest | ChatRequest, num_seen: int = 0) -> Tensor:
        """Return the token ids [Q] of a request's prompt, int64.

        Args:
            request: a completion or a chat.
            num_seen: tokens that its session has processed before.

        Raises:
            InputError: the prompt is empty, too long, has ids outside the vocabulary or no valid
                text, or the chat template refuses the messages.
        """
        if isinstance(request, CompletionRequest):
            tokens = self._completion_tokens(request, num_seen)
        else:
            tokens = self._chat_tokens(request, num_seen)
        if not tokens and not num_seen:
            raise InputError("the prompt is empty and at least 1 token is needed; give some text")
        if len(tokens) > self._limits.prompt_tokens:
            raise InputError(
                f"the prompt has {len(tokens)} tokens, and this server accepts at most "
                f"{self._limits.prompt_tokens}; shorten it"
            )
        return validate_tokens(tokens, self._vocab_size)

    def token_text(self, token: int) -> str:
        """Return the text of a single token, with U+FFFD for an incomplete character."""
        text: str = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return text

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self._tokenizer)

    def detokenizer(self) -> Detokenizer:
        """Return a new detokenizer, for one completion."""
        return Detokenizer(self._tokenizer)

    def token_texts(self, tokens: list[int]) -> list[str]:
        """Return the text that each token completes, special tokens included."""
        text = Detokenizer(self._tokenizer, skip_special_tokens=False)
        return [text.push(token) for token in tokens]

    def _completion_tokens(self, request: CompletionRequest, num_seen: int) -> list[int]:
        if isinstance(request.prompt, list):
            return request.prompt
        _validate_unicode(request.prompt)
        # A BOS token has no place in the middle of a session.
        options = {"add_special_tokens": False} if num_seen else {}
        ids: list[int] = self._tokenizer(request.prompt, verbose=False, **options).input_ids
        return ids

    def _chat_tokens(self, request: ChatRequest, num_seen: int) -> list[int]:
        if not self._tokenizer.chat_template:
            raise InputError("the model has no chat template; use /v1/completions")
        for message in request.messages:
            _validate_unicode(message.content)
        if num_seen:
            if [message.role for message in request.messages] != ["user"]:
                raise InputError(
                    f"{len(request.messages)} messages were sent to a session that has begun; send "
                    "only the new user message, since the session contains the others"
                )
            return self._template.following(request.messages[0].content)
        messages = [message.model_dump() for message in request.messages]
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise InputError(
                f"the chat template refuses the messages: {error}; mend their roles or order"
            ) from error
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids


@final
class Service:
    """Answers requests with the models that are served.

    Args:
        models: the models; the first is the default.
        prompts: tokenizes prompts.
        eos_token_ids: tokens that end a sequence.
        limits: limits of requests.
        metrics: counts requests.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        prompts: Prompts,
        eos_token_ids: frozenset[int],
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self.models = {each.name: each for each in models}
        self.limits = limits
        self.metrics = metrics
        self._default = models[0]
        self._prompts = prompts
        self._eos_token_ids = eos_token_ids
        metrics.add_gauges(models)

    def model(self, name: str | None) -> ServedModel:
        """Return the model of a name; None is the default.

        Raises:
            NotFoundError: there is none.
        """
        if name is None:
            return self._default
        if name not in self.models:
            names = " or ".join(repr(each) for each in self.models)
            raise NotFoundError(f"model {name!r} is not served; try {names}")
        return self.models[name]

    def sessions(self, model: str | None) -> SessionStore:
        """Return the sessions of a model.

        Raises:
            NotFoundError: there is no such model, or the server stores no sessions.
        """
        sessions = self.model(model).sessions
        if sessions is None:
            raise NotFoundError("this server stores no sessions; start it with --folder")
        return sessions

    @property
    def session_file_bytes(self) -> int:
        """Upper bound of the bytes of a session's file."""
        stores = [model.sessions for model in self.models.values()]
        return max((store.file_bytes for store in stores if store), default=0)

    @property
    def is_alive(self) -> bool:
        """Whether all models accept requests."""
        return all(model.thread.is_alive for model in self.models.values())

    async def start(self, request: CompletionRequest | ChatRequest) -> CompletionResponse:
        """Start the completions of a request; the caller must abort the response at the end.

        Raises:
            InputError: the prompt or n is refused.
            ConfigError: a number is out of range.
            ServerError: the model or session does not exist or is in use, or the queue is full.
        """
        model = self.model(request.model)
        model.thread.validate_n(request.n)
        samplings = [_sampling(request, index) for index in range(request.n)]
        # Tokenizing a long prompt takes long, and disks may be slow.
        prompt, store = await run_in_threadpool(self._prompt_and_store, request, model)
        prompts, limits = self._prompts, self.limits
        try:
            response = CompletionResponse(
                request,
                prompt,
                model.name,
                prompts.token_text,
                prompts.token_texts,
                RequestMetrics(self.metrics, model.name),
            )
            completions = [
                Completion(
                    prompt,
                    sampling,
                    scheduler=model.thread.scheduler,
                    max_new_tokens=min(
                        request.max_new_tokens or limits.new_tokens, limits.new_tokens
                    ),
                    eos_token_ids=self._eos_token_ids,
                    stops=StopStrings(request.stops),
                    detokenizer=prompts.detokenizer(),
                    store=store,
                    emit=partial(response.put, index),
                    seconds=limits.seconds,
                    top_logprobs=request.num_top_logprobs,
                )
                for index, sampling in enumerate(samplings)
            ]
            response.submit(model.thread, completions)
        except BaseException:
            store.release()
            raise
        return response

    def _prompt_and_store(
        self, request: CompletionRequest | ChatRequest, model: ServedModel
    ) -> tuple[Tensor, StateStore]:
        if request.session is None:
            return self._prompts.tokens(request), model.prefix_cache
        lease = self.sessions(request.model).lease(request.session)
        try:
            return self._prompts.tokens(request, lease.num_seen), lease
        except BaseException:
            lease.release()
            raise


def _sampling(request: TextRequest, index: int) -> Sampling:
    """Return the sampling of one completion; each has random numbers of its own."""
    return Sampling(
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        seed=None if request.seed is None else (request.seed + index) % 2**63,
    )


def _validate_unicode(text: str) -> None:
    # JSON may contain lone surrogates, which no tokenizer accepts.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text has a lone surrogate at {error.start}: {text[error.start]!a}; remove it"
        ) from error
