"""How likely tokens were, against the model's own forward over the whole text."""

from typing import Any

import pytest
import torch

from lacache import Engine, Sampling
from lacache.engine.sampler import token_logprobs
from lacache.errors import ConfigError
from tests.cache.tiny_models import random_ids, tiny_model
from tests.engine.alone import PLAN


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama")


@pytest.mark.parametrize("top", [0, 3])
@pytest.mark.parametrize(
    "sampling", [None, Sampling(temperature=1.5, top_k=9, repetition_penalty=1.3, seed=3)]
)
def test_they_are_the_models(model: Any, sampling: Sampling | None, top: int) -> None:
    prompt = random_ids(5)[0].tolist()
    engine = Engine(model, *PLAN)
    stream = engine.submit(prompt, max_new_tokens=6, sampling=sampling, top_logprobs=top)
    assert stream.logprobs is None
    new, told = [], []
    for token in stream:
        new.append(token)
        told.append(stream.logprobs)
    assert len(prompt + new) < PLAN[0]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + new])).logits[0]
    wanted = logits.log_softmax(dim=-1)[len(prompt) - 1 : -1]
    for token, found, row in zip(new, told, wanted, strict=True):
        assert found is not None
        assert found.logprob == pytest.approx(float(row[token]), abs=1e-4)
        best = row.topk(top)
        assert [likely for likely, _ in found.top] == best.indices.tolist()
        assert [p for _, p in found.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_no_logprobs_without_a_request_for_them(model: Any) -> None:
    stream = Engine(model, *PLAN).submit([1, 2], max_new_tokens=2)
    next(stream)
    assert stream.logprobs is None


def test_there_are_no_more_than_tokens() -> None:
    found = token_logprobs(torch.tensor([0.0, 1.0, -1.0]), 2, 9)
    assert [token for token, _ in found.top] == [1, 0, 2]
    assert found.logprob == found.top[2][1]


def test_a_wrong_number(model: Any) -> None:
    engine = Engine(model, *PLAN)
    with pytest.raises(ConfigError, match="top_logprobs=-1 must be at least 0"):
        engine.submit([1], top_logprobs=-1)
    with engine.open() as session, pytest.raises(ConfigError, match="top_logprobs"):
        session.generate([1], top_logprobs=-1)
    with engine.open() as session, pytest.raises(ConfigError, match="lookahead=-1"):
        session.generate([1], lookahead=-1)
