"""From a request to jobs, and from what becomes of them to an answer."""

from collections.abc import Sequence
from functools import partial
from typing import final

from starlette.concurrency import run_in_threadpool

from lacache.engine.sampling import Sampling
from lacache.engine.stop import StopStrings
from lacache.server.answers import Answer
from lacache.server.errors import NotFoundError
from lacache.server.job import Job
from lacache.server.metrics import Metrics, RequestMetrics
from lacache.server.origin import Origin, PromptOrigin, SessionOrigin
from lacache.server.prompts import Prompts
from lacache.server.schemas import ChatRequest, CompletionRequest, TextRequest
from lacache.server.served import Served
from lacache.server.settings import Limits
from lacache.server.state.sessions import Sessions
from lacache.server.texts import Texts


@final
class Service:
    """Texts for requests.

    Args:
        served: what there is; the first is meant where a request names none.
        prompts: by the tokenizer of the model.
        eos_token_ids: tokens that end a text.
        limits: of requests.
        metrics: where they are counted.
    """

    def __init__(
        self,
        served: Sequence[Served],
        prompts: Prompts,
        eos_token_ids: frozenset[int],
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self.all = {each.name: each for each in served}
        self.limits = limits
        self.metrics = metrics
        self._first = served[0]
        self._prompts = prompts
        self._ends = eos_token_ids
        metrics.watch(served)

    def served(self, name: str | None) -> Served:
        """What is meant by a model's name.

        Raises:
            NotFoundError: nothing.
        """
        if name is None:
            return self._first
        if name not in self.all:
            names = " or ".join(repr(each) for each in self.all)
            raise NotFoundError(f"model {name!r} is not here; try {names}")
        return self.all[name]

    def sessions(self, model: str | None) -> Sessions:
        """The sessions of a model.

        Raises:
            NotFoundError: no such model, or sessions are not kept.
        """
        sessions = self.served(model).sessions
        if sessions is None:
            raise NotFoundError("this server keeps no sessions; start it with --folder")
        return sessions

    @property
    def session_file_bytes(self) -> int:
        """More than the file of any session has."""
        kept = [served.sessions for served in self.all.values()]
        return max((sessions.file_bytes for sessions in kept if sessions), default=0)

    @property
    def is_alive(self) -> bool:
        """Whether texts are written."""
        return all(served.thread.is_alive for served in self.all.values())

    async def begin(self, request: CompletionRequest | ChatRequest) -> Texts:
        """Begin to write; the caller must close what this gives.

        Raises:
            InputError: the prompt is refused.
            ConfigError: a number is out of range.
            ServerError: the model or session is not here or in use, or too many texts wait.
        """
        served = self.served(request.model)
        samplings = [_sampling(request, index) for index in range(request.n)]
        # Long texts take long to cut into tokens, and disks may be slow.
        tokens, origins = await run_in_threadpool(self._origins, request, served, samplings)
        is_chat = isinstance(request, ChatRequest)
        prompts = self._prompts
        text_of = None if request.num_top_logprobs is None else prompts.text_of
        answer = Answer(served.name, is_chat=is_chat, text_of=text_of)
        metrics = RequestMetrics(self.metrics, served.name)
        texts = Texts(request, tokens, answer, prompts.texts_of, metrics)
        most = min(request.max_new_tokens or self.limits.new_tokens, self.limits.new_tokens)
        try:
            jobs = [
                Job(
                    origin,
                    most,
                    self._ends,
                    StopStrings(request.stops),
                    partial(texts.tell, index),
                    self.limits.seconds,
                    request.num_top_logprobs,
                )
                for index, origin in enumerate(origins)
            ]
            texts.submit(served.thread, jobs)
        except BaseException:
            for origin in origins:
                origin.close()
            raise
        return texts

    def _origins(
        self, request: CompletionRequest | ChatRequest, served: Served, samplings: list[Sampling]
    ) -> tuple[list[int], list[Origin]]:
        if request.session is None:
            tokens = self._prompts.tokens(request)
            return tokens, [PromptOrigin(tokens, each, served.prefixes) for each in samplings]
        lease = self.sessions(request.model).lease(request.session)
        try:
            tokens = self._prompts.tokens(request, lease.num_seen)
        except BaseException:
            lease.close()
            raise
        return tokens, [SessionOrigin(tokens, samplings[0], lease, self._ends)]


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
