"""Asking one sample of a cache: read the context, then question by question, under a protocol."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lacache.cache import HookedCache
from lacache.common.records import Record
from lacache.engine.eos import eos_token_ids
from lacache.errors import ConfigError, InputError, ModelError
from lacache.evals.methods.full import FullCache
from lacache.evals.methods.method import Method
from lacache.evals.tasks.task import Question, Sample, Task
from lacache.evals.watch import Watch
from lacache.models.decoder import cache_argument
from lacache.models.model_info import model_info
from lacache.policies.budget import ParsedBudget

Protocol = Literal["strict", "dense"]
FirstToken = Literal["cache", "dense"]
PROTOCOLS = ("strict", "dense")
FIRST_TOKENS = ("cache", "dense")

_DIGITS = 5


@final
@dataclass(frozen=True)
class Asking:
    """How samples are asked.

    Args:
        protocol: "strict" reads in segments, so that nothing is ever read from a cache larger than
            the budget. "dense" reads the first input with a full cache and compacts it then: the
            prompt, or the context alone where several questions follow, so that no method knows
            them while it chooses what to keep.
        first_token: where the first answer token comes from: "cache", the compacted one (in
            "dense" the last token of the prompt is then read after the compaction), or "dense",
            the logits of the dense pass, as in the paper.

    Raises:
        ConfigError: another value, or "dense" as the first token of a strict run.
    """

    protocol: Protocol = "strict"
    first_token: FirstToken = "cache"

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ConfigError(f"protocol={self.protocol!r} must be strict or dense; try strict")
        if self.first_token not in FIRST_TOKENS:
            raise ConfigError(f"first_token={self.first_token!r} must be cache or dense; try cache")
        if self.protocol == "strict" and self.first_token == "dense":
            raise ConfigError(
                "first_token='dense' needs a dense pass, and the strict protocol has none; try "
                "first_token='cache' or protocol='dense'"
            )


@final
@dataclass(frozen=True)
class Answer:
    """What was made of one question."""

    prediction: str
    nll: float
    """Negative log-likelihood of the whole first right answer, in nats."""


@torch.no_grad()
def ask(
    model: Any,
    tokenizer: Any,
    method: Method,
    budget: ParsedBudget,
    asking: Asking,
    task: Task,
    sample: Sample,
    *,
    on_tokens: Callable[[int], None] | None = None,
) -> Record:
    """Ask all questions of a sample, in a new cache, and score the answers.

    Token ids of the context and of each question are made apart and joined, after the start token
    if the tokenizer adds one. Decoding is greedy, up to the question's limit or the end of text.
    The questions go on in one cache, each after the answer that was given to the one before.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        method: what bounds the cache.
        budget: resolved with the tokens of the context and the first question; in bytes, it is
            for the growing layers of one sequence.
        asking: the protocol.
        task: scores the answers.
        sample: the context and at least one question.
        on_tokens: called with the number of new tokens after each forward of the sample, besides
            those for the loss.

    Returns:
        The sample's part of a run's record.

    Raises:
        ConfigError: the method cannot work with this capacity or model, or the sample's questions
            do not go with the protocol.
        InputError: a sample without a question or with an empty prompt.
        ModelError: the model gives something that is not a number.
        ProtocolError: the cache held more than its capacity.
    """
    if not sample.questions:
        raise InputError(f"a sample of {task.name} has 0 questions; give at least one")
    several = len(sample.questions) > 1
    if several and asking.first_token == "dense":
        raise ConfigError(
            f"task {task.name} asks {len(sample.questions)} questions about a context that is "
            "compacted before them, so first_token='dense' cannot be; try first_token='cache'"
        )
    context, first, *later = _token_ids(tokenizer, sample)
    prompt_tokens = len(context) + len(first)
    if prompt_tokens < 2:
        raise InputError(f"a prompt of {prompt_tokens} tokens is too short; give at least 2")
    capacity = budget.capacity(
        bytes_per_token=model_info(model).bytes_per_token,
        prompt_tokens=prompt_tokens,
        smallest=1,
    )
    dense = asking.protocol == "dense"
    cache = method.open(model, capacity=capacity, dense=dense)
    limit = None if isinstance(method, FullCache) else capacity
    watch = Watch(model, cache, capacity=limit, on_tokens=on_tokens)
    ends = eos_token_ids(model, tokenizer)
    unread = context
    answers: list[Answer] = []
    for question, ids in zip(sample.questions, (first, *later), strict=True):
        is_first = not answers
        if is_first and several and context:
            # Whatever the method, the context is read before the first question is known.
            pieces = [context, ids]
        elif is_first and dense and asking.first_token == "cache":
            joined = [*unread, *ids]
            pieces = [joined[:-1], joined[-1:]]
        else:
            pieces = [[*unread, *ids]]
        for number, piece in enumerate(filter(None, pieces)):
            with watch.watching(dense=dense and is_first and number == 0):
                logits = cache.prefill(model, _tensor(piece, model))
        nll = _answer_nll(model, cache, logits, _answer_ids(tokenizer, question), limit)
        with watch.watching():
            written, unread = _write(model, cache, logits, question.max_new_tokens, ends)
        text = tokenizer.decode(written, skip_special_tokens=True)
        answers.append(Answer(text, nll))
    scores = [task.score(a.prediction, q) for a, q in zip(answers, sample.questions, strict=True)]
    return {
        "score": round(fmean(scores), _DIGITS),
        "nll": round(fmean(a.nll for a in answers), _DIGITS),
        "scores": [round(score, _DIGITS) for score in scores],
        "nlls": [round(a.nll, _DIGITS) for a in answers],
        "answers": [list(q.answers) for q in sample.questions],
        "predictions": [a.prediction for a in answers],
        "prompt_tokens": prompt_tokens,
        "capacity": capacity if limit is not None else None,
        "peak_bytes": round(watch.peak_bytes),
        "mean_bytes": round(watch.mean_bytes),
        "full_bytes": watch.full_bytes,
        "info": dict(sample.info),
    }


def _token_ids(tokenizer: Any, sample: Sample) -> list[list[int]]:
    """Of the context, with the start token, and of each question."""
    texts = [sample.context, *(question.text for question in sample.questions)]
    ids: list[list[int]] = [
        tokenizer(text, add_special_tokens=False, verbose=False).input_ids for text in texts
    ]
    # What the tokenizer adds to no text at all is what it starts every text with.
    ids[0] = [*tokenizer("").input_ids, *ids[0]]
    return ids


def _answer_ids(tokenizer: Any, question: Question) -> list[int]:
    """Tokens of the first right answer, after a space where the question ends in none."""
    answer = question.answers[0] if question.answers else ""
    if not answer:
        raise InputError(
            f"question {question.text[-40:]!r} has no right answer; give at least one, not empty"
        )
    apart = question.text[-1:].isspace() or answer[0].isspace()
    ids: list[int] = tokenizer(
        answer if apart else f" {answer}", add_special_tokens=False
    ).input_ids
    return ids


def _write(
    model: Any, cache: HookedCache, logits: Tensor, limit: int, ends: frozenset[int]
) -> tuple[list[int], list[int]]:
    """Decode greedily from logits [1, V].

    Returns:
        The tokens written, without one that ends the text, and those of them not read yet.
    """
    written: list[int] = []
    while True:
        token = int(logits.argmax(dim=-1))
        if token in ends:
            return written, []
        written.append(token)
        if len(written) >= limit:
            return written, [token]
        logits = cache.prefill(model, _tensor([token], model))


def _answer_nll(
    model: Any, cache: HookedCache, logits: Tensor, answer: Sequence[int], limit: int | None
) -> float:
    """Loss of an answer in nats, from logits [1, V] and a copy of the cache that gave them."""
    by_token = [logits]
    if len(answer) > 1:
        fork = copy.deepcopy(cache)
        with Watch(model, fork, capacity=limit).watching():
            output = model(
                input_ids=_tensor(answer[:-1], model), **cache_argument(model, fork), use_cache=True
            )
        by_token.append(output.logits[0])
    targets = torch.tensor(answer, device=logits.device)
    nll = float(cross_entropy(torch.cat(by_token).float(), targets, reduction="sum"))
    if not torch.tensor(nll).isfinite():
        raise ModelError(
            f"the log-likelihood of an answer is {-nll} and must be a finite number; load the "
            f"model in another type than {model.dtype}, such as float32"
        )
    return nll


def _tensor(ids: Sequence[int], model: Any) -> Tensor:
    return torch.tensor([list(ids)], dtype=torch.long, device=model.device)
