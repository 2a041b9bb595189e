"""Answer one sample: prefill the context, then question by question, under a protocol."""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lacache.cache import HookedCache
from lacache.common.records import Record
from lacache.engine.detokenizer import find_eos_token_ids
from lacache.errors import ConfigError, InputError, ModelError
from lacache.evals.dense_pass import DensePasses, shares_dense_pass
from lacache.evals.monitor import CacheMonitor, open_monitored
from lacache.evals.runs import Protocol
from lacache.evals.tasks.task import Question, Sample, Task
from lacache.models.decoder import cache_argument
from lacache.models.start_tokens import start_tokens
from lacache.policies import Budget, Full, Policy

_DIGITS = 5


@torch.no_grad()
def answer_sample(
    model: Any,
    tokenizer: Any,
    policy: Policy,
    budget: Budget,
    protocol: Protocol,
    task: Task,
    sample: Sample,
    *,
    kv_dtype: str | None = None,
    on_tokens: Callable[[int], None] | None = None,
    passes: DensePasses | None = None,
) -> Record:
    """Answer all questions of a sample, in a new cache, and score the answers.

    Context and questions are tokenized apart and joined, after the start token if the tokenizer
    adds one. Decoding is greedy, up to the question's limit or an end token; the last answer also
    ends once it is right for good. All questions continue in one cache, each after the answer that
    was given to the one before.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        policy: what the cache keeps.
        budget: resolved with the tokens of the context and the first question.
        protocol: how the prompt reaches the cache.
        task: scores the answers.
        sample: the context and at least one question.
        kv_dtype: what the cache stores keys and values in; None is the model's own type.
        on_tokens: called with the number of new tokens after each forward of the sample, besides
            those for the loss.
        passes: dense passes that other policies and budgets have computed; None computes it anew.

    Returns:
        The sample's part of a run's record.

    Raises:
        ConfigError: the policy cannot work with this capacity or model, or the sample's questions
            do not go with the protocol.
        InputError: a sample without a question or with an empty prompt.
        ModelError: the model returns something that is not a finite number.
        ProtocolError: the cache held more than its capacity.
    """
    if not sample.questions:
        raise InputError(f"a sample of {task.name} has 0 questions; give at least one")
    if len(sample.questions) > 1 and protocol.first_token == "dense":
        raise ConfigError(
            f"task {task.name} asks {len(sample.questions)} questions about a context that is "
            "compacted before them, so first_token='dense' cannot be used; try first_token='cache'"
        )
    context, *questions = _token_ids(tokenizer, sample)
    prompt_tokens = len(context) + len(questions[0])
    if prompt_tokens < 2:
        raise InputError(f"a prompt of {prompt_tokens} tokens is too short; give at least 2")
    monitor = open_monitored(
        model,
        policy,
        budget,
        prompt_tokens,
        dense=protocol.is_dense,
        kv_dtype=kv_dtype,
        on_tokens=on_tokens,
    )
    cache, eos_token_ids = monitor.cache, find_eos_token_ids(model, tokenizer)
    pending = context
    predictions: list[str] = []
    losses: list[float] = []
    for question, ids in zip(sample.questions, questions, strict=True):
        is_first = not predictions
        inputs = _first_inputs(context, questions, protocol) if is_first else [[*pending, *ids]]
        for number, chunk in enumerate(filter(None, inputs)):
            opens = is_first and number == 0
            is_one_chunk = opens and (protocol.is_dense or isinstance(policy, Full))
            with monitor.monitoring(dense=opens and protocol.is_dense):
                if passes is not None and is_one_chunk and shares_dense_pass(model, policy):
                    logits = passes.prefill(monitor, chunk)
                else:
                    logits = cache.prefill(model, _tensor(chunk, model))
        losses.append(_answer_nll(model, monitor, logits, _answer_ids(tokenizer, question)))
        is_last = len(losses) == len(questions)
        with monitor.monitoring():
            prediction, pending = _generate(
                model,
                tokenizer,
                cache,
                logits,
                question.max_new_tokens,
                eos_token_ids,
                partial(_is_right, task, question) if is_last and task.stays_right else None,
            )
        predictions.append(prediction)
    scores = [task.score(p, q) for p, q in zip(predictions, sample.questions, strict=True)]
    return {
        "score": round(fmean(scores), _DIGITS),
        "nll": round(fmean(losses), _DIGITS),
        "scores": [round(score, _DIGITS) for score in scores],
        "nlls": [round(loss, _DIGITS) for loss in losses],
        "answers": [list(q.answers) for q in sample.questions],
        "predictions": predictions,
        "prompt_tokens": prompt_tokens,
        "capacity": monitor.capacity,
        **monitor.sizes(),
        "info": dict(sample.info),
    }


def _first_inputs(
    context: list[int], questions: Sequence[list[int]], protocol: Protocol
) -> Iterator[list[int]]:
    """Yield what is prefilled up to the first answer; with a dense prefill, the first densely."""
    if len(questions) > 1:
        # Whatever the policy, the context is prefilled before the first question is known.
        yield context
        yield questions[0]
    elif protocol.is_dense and protocol.first_token == "cache":
        *before, last = context + questions[0]
        yield before
        yield [last]
    else:
        yield context + questions[0]


def _token_ids(tokenizer: Any, sample: Sample) -> list[list[int]]:
    """Tokenize the context, with the start token, and each question."""
    texts = [sample.context, *(question.text for question in sample.questions)]
    ids: list[list[int]] = [
        tokenizer(text, add_special_tokens=False, verbose=False).input_ids for text in texts
    ]
    ids[0] = [*start_tokens(tokenizer), *ids[0]]
    return ids


def _answer_ids(tokenizer: Any, question: Question) -> list[int]:
    """Tokenize the first right answer, after a space where the question does not end in one."""
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


def _is_right(task: Task, question: Question, prediction: str) -> bool:
    return task.score(prediction, question) == 1.0


def _generate(
    model: Any,
    tokenizer: Any,
    cache: HookedCache,
    logits: Tensor,
    limit: int,
    eos_token_ids: frozenset[int],
    is_enough: Callable[[str], bool] | None,
) -> tuple[str, list[int]]:
    """Decode greedily from logits [1, V].

    Returns:
        The generated text, without an end token, and those of its tokens not in the cache yet.
    """
    generated: list[int] = []
    while True:
        token = int(logits.argmax(dim=-1))
        pending = [] if token in eos_token_ids else [token]
        generated += pending
        text = tokenizer.decode(generated, skip_special_tokens=True)
        if not pending or len(generated) >= limit or (is_enough is not None and is_enough(text)):
            return text, pending
        logits = cache.prefill(model, _tensor(pending, model))


def _answer_nll(model: Any, monitor: CacheMonitor, logits: Tensor, answer: Sequence[int]) -> float:
    """Return the loss of an answer in nats, from logits [1, V] and a copy of their cache."""
    by_token = [logits]
    if len(answer) > 1:
        fork = copy.deepcopy(monitor.cache)
        with CacheMonitor(model, fork, capacity=monitor.capacity).monitoring():
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
