"""What was read once is not read again, and the text is the same."""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from lacache.server.service import Service
from lacache.server.settings import StorageSettings
from tests.engine.tiny import tiny_tokenizer
from tests.server.serving import NAME, client, listening, service

WORDS = ["the", "cat", "and", "dog", "go", "to", "sea", "Ada", "was", "here"]
Ask = Any


@contextmanager
def new_server(storage: StorageSettings, **options: Any) -> Iterator[tuple[Service, Ask]]:
    with (
        service(storage=storage, **options) as one,
        listening(one) as address,
        client(address) as openai,
    ):
        yield one, openai.chat.completions.create


def reused(answer: Any) -> int:
    number: int = answer.usage.prompt_tokens_details.cached_tokens
    return number


def talk(asks: list[Ask], num_turns: int, most_words: int = 9, **settings: Any) -> list[list[Any]]:
    """Answers of each server to the same conversation, which goes on with the first one's."""
    chosen = random.Random(3)
    messages: list[Any] = [{"role": "system", "content": "Be brief."}]
    answers = []
    for turn in range(num_turns):
        words = " ".join(chosen.choices(WORDS, k=chosen.randint(1, most_words)))
        messages.append({"role": "user", "content": words})
        given = {"model": NAME, "messages": messages, "max_tokens": 9} | settings
        if "seed" in settings:
            given["seed"] += turn
        answers.append([ask(**given) for ask in asks])
        said = answers[-1][0].choices[0].message.content
        messages.append({"role": "assistant", "content": said})
    return answers


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0},
        {"temperature": 0, "extra_body": {"repetition_penalty": 1.5}},
        {"temperature": 1.3, "seed": 5, "extra_body": {"repetition_penalty": 1.2, "top_k": 20}},
    ],
)
def test_prefix_reuse_does_not_change_the_text(settings: dict[str, Any]) -> None:
    with ExitStack() as stack:
        servers = [
            stack.enter_context(new_server(StorageSettings(memory_bytes=n))) for n in (2**24, 0)
        ]
        answers = talk([ask for _, ask in servers], 7, **settings)
    for number, (known, anew) in enumerate(answers):
        assert known.choices[0].message.content == anew.choices[0].message.content
        assert reused(anew) == 0
        # All but the last answer, at worst, and what the user says.
        assert known.usage.prompt_tokens - reused(known) < 150 or number == 0
    assert reused(answers[-1][0]) > 200


@pytest.mark.slow
def test_prefill_cost_is_constant_over_eighty_turns() -> None:
    with new_server(StorageSettings(memory_bytes=2**21)) as (one, ask):
        answers = [answer for (answer,) in talk([ask], 80, 2, temperature=0)]
        read = [answer.usage.prompt_tokens - reused(answer) for answer in answers]
        assert max(read[1:]) < 150
        assert answers[-1].usage.prompt_tokens > 2_000
        assert 2**20 < one.model(None).prefix_cache.num_bytes <= 2**21


def test_a_repeated_prompt_needs_no_prefill() -> None:
    messages: list[Any] = [{"role": "user", "content": "the cat " * 20}]
    with new_server(StorageSettings()) as (_, ask):
        answers = [
            ask(model=NAME, messages=messages, max_tokens=9, temperature=0) for _ in range(2)
        ]
        assert reused(answers[1]) == answers[1].usage.prompt_tokens
        assert answers[0].choices[0].message.content == answers[1].choices[0].message.content


def test_the_prefix_cache_survives_a_restart(tmp_path: Path) -> None:
    messages: list[Any] = [{"role": "user", "content": "the cat " * 20}]
    told = []
    for _ in range(2):
        with new_server(StorageSettings(folder=tmp_path)) as (_, ask):
            told.append(ask(model=NAME, messages=messages, max_tokens=9, temperature=0))
    assert (reused(told[0]), reused(told[1])) == (0, told[1].usage.prompt_tokens)
    assert told[0].choices[0].message.content == told[1].choices[0].message.content


def test_completions_reuse_prefixes() -> None:
    ids = tiny_tokenizer()("the sea " * 30).input_ids
    with service() as one, listening(one) as address:

        def ask(tokens: list[int]) -> dict[str, Any]:
            body = {"prompt": tokens, "max_tokens": 5, "temperature": 0, "logprobs": 0}
            answer: dict[str, Any] = httpx.post(f"{address}/v1/completions", json=body).json()
            return answer

        ask(ids[:100])
        answer = ask(ids)
        assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 100}


def test_a_disconnect_keeps_the_prefix() -> None:
    """Whoever comes again after that reads nothing twice."""
    body = {"prompt": "the sea " * 40, "max_tokens": 100_000, "stream": True, "temperature": 0}
    with service(is_endless=True) as one, listening(one) as address:
        with httpx.stream("POST", f"{address}/v1/completions", json=body) as stream:
            next(stream.iter_lines())
        answer = httpx.post(
            f"{address}/v1/completions", json=body | {"stream": False, "max_tokens": 1}
        ).json()
        usage = answer["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"]
