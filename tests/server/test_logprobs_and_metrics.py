"""Log probabilities in OpenAI's formats, and numbers for Prometheus."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx
import pytest
import torch
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from lacache.engine.sampler import TokenLogprobs
from lacache.server.service import Service
from tests.engine.tiny import tiny_tokenizer
from tests.server.serving import NAME, client, listening, new_engine, service

PROMPT = "the cat and the dog"
GREEDY: dict[str, Any] = {"model": NAME, "max_tokens": 12, "temperature": 0}


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Service, str]]:
    with service(is_endless=True) as one, listening(one) as address:
        yield one, address


@pytest.fixture(scope="module")
def openai(running: tuple[Service, str]) -> Iterator[OpenAI]:
    with client(running[1]) as openai:
        yield openai


def expected(prompt: list[int], top: int) -> list[tuple[str, TokenLogprobs]]:
    """Texts of tokens, and how likely they were, from the engine."""
    stream = new_engine().submit(prompt, max_new_tokens=12, top_logprobs=top)
    told = []
    for token in stream:
        assert stream.logprobs is not None
        told.append((text_of(token), stream.logprobs))
    return told


def text_of(token: int) -> str:
    text: str = tiny_tokenizer().decode([token])
    return text


def test_logprobs_of_a_completion(openai: OpenAI) -> None:
    answer = openai.completions.create(prompt=PROMPT, logprobs=2, **GREEDY)
    told = answer.choices[0].logprobs
    wanted = expected(tiny_tokenizer()(PROMPT).input_ids, 2)
    assert told is not None
    assert told.tokens == [text for text, _ in wanted]
    assert told.token_logprobs == pytest.approx([each.logprob for _, each in wanted], abs=1e-4)
    assert told.top_logprobs is not None
    for found, (text, each) in zip(told.top_logprobs, wanted, strict=True):
        assert found.keys() == {text_of(token) for token, _ in each.top}
        assert found[text] == pytest.approx(each.logprob, abs=1e-4)
    assert told.text_offset is not None
    assert told.text_offset == sorted(told.text_offset)
    text = answer.choices[0].text
    # Random bytes are rarely whole characters; where they are, the text stands where it should.
    places = zip(told.text_offset, told.tokens, strict=True)
    pairs = pairwise([(at, token) for at, token in places if not token.startswith("<|")])
    seen = [after for before, after in pairs if before[1].isascii() and after[1].isascii()]
    assert seen
    assert all(text[at : at + len(token)] == token for at, token in seen)


def test_logprobs_of_a_stream_are_the_same(openai: OpenAI) -> None:
    whole = openai.completions.create(prompt=PROMPT, logprobs=1, **GREEDY).choices[0].logprobs
    assert whole is not None
    tokens, offsets = [], []
    for chunk in openai.completions.create(prompt=PROMPT, logprobs=1, stream=True, **GREEDY):
        told = chunk.choices[0].logprobs
        if told is not None:
            tokens += told.tokens or []
            offsets += told.text_offset or []
    assert tokens == whole.tokens
    assert offsets == whole.text_offset


def test_logprobs_of_a_chat(openai: OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": PROMPT}]
    prompt = tiny_tokenizer().apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    wanted = expected(tiny_tokenizer()(prompt, add_special_tokens=False).input_ids, 3)
    answer = openai.chat.completions.create(
        messages=messages, logprobs=True, top_logprobs=3, **GREEDY
    )
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    for found, (text, each) in zip(told.content, wanted, strict=True):
        assert found.token == text
        assert found.bytes == list(text.encode())
        assert found.logprob == pytest.approx(each.logprob, abs=1e-4)
        tops = [top.logprob for top in found.top_logprobs]
        assert tops == pytest.approx([logprob for _, logprob in each.top], abs=1e-4)
    none = openai.chat.completions.create(messages=messages, **GREEDY)
    assert none.choices[0].logprobs is None


def test_top_logprobs_require_logprobs(running: tuple[Service, str]) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}
    answer = httpx.post(f"{running[1]}/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert "top_logprobs=2 needs logprobs=true" in answer.json()["error"]["message"]


def numbers(address: str) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(httpx.get(f"{address}/metrics").text)
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def test_metrics_count() -> None:
    with service(is_endless=True) as one, listening(one) as address, client(address) as openai:
        for _ in range(2):
            openai.completions.create(prompt=PROMPT, **GREEDY)
        httpx.get(f"{address}/no/such/route")
        httpx.post(f"{address}/v1/completions", json={})
        found = numbers(address)
        num_prompt = len(tiny_tokenizer()(PROMPT).input_ids)
        wanted = {
            ("lacache_prompt_tokens_total", NAME): num_prompt,
            ("lacache_cached_prompt_tokens_total", NAME): num_prompt,
            ("lacache_generated_tokens_total", NAME): 24,
            ("lacache_finished_sequences_total", NAME, "length"): 2,
            ("lacache_sequence_seconds_count", NAME): 2,
            ("lacache_time_to_first_token_seconds_count", NAME): 2,
            ("lacache_batch_slots", NAME): 2,
            ("lacache_running_sequences", NAME): 0,
            ("lacache_waiting_sequences", NAME): 0,
            ("lacache_sequence_bytes", NAME): new_engine().bytes_per_sequence,
            ("lacache_reserved_bytes", NAME): new_engine().num_bytes,
            ("lacache_held_bytes", NAME): 0,
            ("lacache_prefix_cache_bytes", NAME): one.model(None).prefix_cache.num_bytes,
            ("lacache_responses_total", "/v1/completions", "200"): 2,
            ("lacache_responses_total", "/v1/completions", "400"): 1,
            ("lacache_responses_total", "none", "404"): 1,
        }
        assert {key: found.get(key) for key in wanted} == wanted


def test_tokens_of_a_snapshot_that_is_refused_are_not_counted() -> None:
    prompt = tiny_tokenizer()(PROMPT).input_ids
    with new_engine(capacity=48).open() as session:
        list(session.generate(prompt[:-1], max_new_tokens=0))
        foreign = session.snapshot()
    with service() as one, listening(one) as address:
        one.model(None).prefix_cache.put(torch.tensor(prompt[:-1]), foreign)
        answer = httpx.post(f"{address}/v1/completions", json={"prompt": PROMPT} | GREEDY)
        assert "was saved with policy=" in answer.json()["error"]["message"]
        found = numbers(address)
        assert found.get(("lacache_cached_prompt_tokens_total", NAME), 0) == 0
