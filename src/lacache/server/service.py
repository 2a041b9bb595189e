"""The service: turns requests into completions on the engine of the model they name."""

from collections.abc import Sequence
from functools import partial
from typing import final

from starlette.concurrency import run_in_threadpool
from torch import Tensor

from lacache.engine.detokenizer import StopStrings
from lacache.engine.sampling import Sampling
from lacache.server.completion import Completion
from lacache.server.errors import NotFoundError
from lacache.server.metrics import Metrics, RequestMetrics
from lacache.server.prefix_cache import PrefixCache
from lacache.server.prompts import Prompts
from lacache.server.response import CompletionResponse
from lacache.server.schemas import ChatRequest, CompletionRequest, TextRequest
from lacache.server.served_model import ServedModel
from lacache.server.session_store import Lease, SessionStore
from lacache.server.settings import Limits


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
            raise NotFoundError(f"model {name!r} is not here; try {names}")
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
        prompt, origin = await run_in_threadpool(self._prompt_and_origin, request, model)
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
                    max_new_tokens=min(
                        request.max_new_tokens or limits.new_tokens, limits.new_tokens
                    ),
                    eos_token_ids=self._eos_token_ids,
                    stops=StopStrings(request.stops),
                    detokenizer=prompts.detokenizer(),
                    origin=origin,
                    emit=partial(response.put, index),
                    seconds=limits.seconds,
                    top_logprobs=request.num_top_logprobs,
                )
                for index, sampling in enumerate(samplings)
            ]
            response.submit(model.thread, completions)
        except BaseException:
            if isinstance(origin, Lease):
                origin.close()
            raise
        return response

    def _prompt_and_origin(
        self, request: CompletionRequest | ChatRequest, model: ServedModel
    ) -> tuple[Tensor, PrefixCache | Lease]:
        if request.session is None:
            return self._prompts.tokens(request), model.prefix_cache
        lease = self.sessions(request.model).lease(request.session)
        try:
            return self._prompts.tokens(request, lease.num_seen), lease
        except BaseException:
            lease.close()
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
