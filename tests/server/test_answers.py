"""Real clients get what the engine writes."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import torch
from openai import (
    APIError,
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    NotFoundError,
    OpenAI,
    RateLimitError,
)

from lacache import Engine
from lacache.engine.sequence import Sequence
from lacache.server import service as service_module
from lacache.server.service import Service
from tests.engine.tiny import tiny_llama, tiny_tokenizer
from tests.server.serving import (
    CAPACITY,
    NAME,
    POLICY,
    client,
    expected,
    listening,
    new_engine,
    service,
)

PROMPT = "the cat and the dog go to the sea. " * 8


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Service, str]]:
    with service() as one, listening(one) as address:
        yield one, address


@pytest.fixture(scope="module")
def openai(running: tuple[Service, str]) -> Iterator[OpenAI]:
    with client(running[1]) as openai:
        yield openai


def tokens(text: str) -> list[int]:
    ids: list[int] = tiny_tokenizer()(text, verbose=False).input_ids
    return ids


def test_models_and_health(running: tuple[Service, str], openai: OpenAI) -> None:
    assert [model.id for model in openai.models.list()] == [NAME]
    assert httpx.get(f"{running[1]}/health").json() == {"status": "ok"}


@pytest.mark.parametrize("prompt", [PROMPT, tokens(PROMPT)])
def test_a_completion(openai: OpenAI, prompt: Any) -> None:
    answer = openai.completions.create(model=NAME, prompt=prompt, max_tokens=50, temperature=0)
    assert answer.choices[0].text == expected(tokens(PROMPT), 50)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(tokens(PROMPT))
    assert answer.usage.completion_tokens == 50
    assert answer.usage.total_tokens == len(tokens(PROMPT)) + 50


def test_a_stream_is_the_same_text(openai: OpenAI) -> None:
    stream = openai.completions.create(
        model=NAME,
        prompt=PROMPT,
        max_tokens=50,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    pieces = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert len(pieces) > 5
    assert "".join(piece.text for piece in pieces) == expected(tokens(PROMPT), 50)
    assert [piece.finish_reason for piece in pieces][-2:] == [None, "length"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 50


def test_a_chat(openai: OpenAI) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "sea"}],
        },
    ]
    joined = [messages[0], {"role": "user", "content": "the sea"}]
    prompt = tiny_tokenizer().apply_chat_template(
        joined, tokenize=False, add_generation_prompt=True
    )
    wanted = expected(tokens(prompt), 30)
    settings: Any = {"model": NAME, "messages": messages, "max_tokens": 30, "temperature": 0}
    answer = openai.chat.completions.create(**settings)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == wanted
    streamed = list(openai.chat.completions.create(**settings, stream=True))
    assert streamed[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == wanted
    assert streamed[-1].choices[0].finish_reason == "length"


def test_stop_strings(openai: OpenAI) -> None:
    whole = expected(tokens(PROMPT), 50)
    stop = whole[20:23]
    answer = openai.completions.create(
        model=NAME, prompt=PROMPT, max_tokens=50, temperature=0, stop=[stop, "never said"]
    )
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens < 50


def test_each_choice_has_its_own_seed(openai: OpenAI) -> None:
    settings: Any = {"model": NAME, "prompt": PROMPT, "max_tokens": 20, "temperature": 1.0}
    three = openai.completions.create(**settings, n=3, seed=7)
    texts = [choice.text for choice in three.choices]
    assert len(set(texts)) == 3
    assert three.usage is not None
    assert three.usage.completion_tokens == 60
    again = openai.completions.create(**settings, seed=8)
    assert again.choices[0].text == texts[1]


def test_concurrent_requests_get_the_same_text_as_single_ones(openai: OpenAI) -> None:
    prompts = [PROMPT[: 10 + 7 * i] for i in range(12)]

    def ask(prompt: str) -> str:
        settings: Any = {"model": NAME, "max_tokens": 15, "temperature": 0}
        return openai.completions.create(prompt=prompt, **settings).choices[0].text

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(ask, prompts))
    assert found == [expected(tokens(prompt), 15) for prompt in prompts]


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": [5, 10**6]}, "token ids from 5 to 1000000"),
        ({"prompt": {"a": 1}}, "prompt={.*} must be a string or a list; send text"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 0.001}, "temperature=0.001 must be 0"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n=0 must be at least 1; try n=1"),
        ({"stop": ["x" * 300]}, "300 characters"),
        ({"stop": ""}, "stop='' must be of length 1 or more; add to it"),
        ({"seed": "x"}, "seed='x' must be an integer; try seed=1"),
        ({"seed": -1}, "seed=-1 must be at least 0; try seed=0"),
        ({"logprobs": 30}, "logprobs"),
        ({"echo": True}, "echo is not supported by this server; leave it out"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
    ],
)
def test_invalid_fields_are_refused_with_the_reason(
    openai: OpenAI, field: dict[str, Any], message: str
) -> None:
    settings: Any = {"model": NAME, "prompt": "the sea", "max_tokens": 3} | field
    with pytest.raises(BadRequestError, match=message):
        openai.completions.create(**settings)
    if field != {"n": 0} and "temperature" not in field:
        assert openai.completions.create(model=NAME, prompt="a", max_tokens=1).choices[0]


def test_unknown_models_and_paths(running: tuple[Service, str], openai: OpenAI) -> None:
    with pytest.raises(NotFoundError, match="model 'gpt' is not served; try 'tiny'"):
        openai.completions.create(model="gpt", prompt="a")
    answer = httpx.get(f"{running[1]}/v1/nothing")
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "Not Found"
    answer = httpx.post(
        f"{running[1]}/v1/completions",
        content=b"{no json",
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 400
    assert "JSON" in answer.json()["error"]["message"]


def test_a_disconnect_aborts_the_request_and_frees_its_batch_slot() -> None:
    with service(is_endless=True) as one, listening(one) as address, client(address) as openai:
        thread = one.model(None).thread
        settings: Any = {"model": NAME, "prompt": PROMPT, "max_tokens": 100_000, "temperature": 0}
        for _ in range(3):
            stream = openai.completions.create(**settings, stream=True)
            next(iter(stream))
            stream.close()
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/completions", json=settings, timeout=0.3)
        # A sequence that is not aborted runs for minutes.
        until = time.monotonic() + 20
        while (thread.num_running or thread.num_waiting) and time.monotonic() < until:
            time.sleep(0.05)
        left = (thread.num_running, thread.num_waiting, thread.num_open)
        metrics = httpx.get(f"{address}/metrics").text
        # Else the server would wait for what still runs.
        thread.close()
        assert left == (0, 0, 0)
        assert f'lacache_finished_sequences_total{{model="{NAME}",reason="abort"}} 4.0' in metrics


def test_a_full_queue_returns_429() -> None:
    with (
        service(max_sequences=1, waiting=1, is_endless=True) as one,
        listening(one) as address,
        client(address) as openai,
    ):
        settings: Any = {"model": NAME, "prompt": PROMPT, "max_tokens": 100_000, "stream": True}
        streams = [openai.completions.create(**settings) for _ in range(2)]
        next(iter(streams[0]))
        with pytest.raises(RateLimitError) as caught:
            openai.completions.create(model=NAME, prompt="a", max_tokens=1)
        assert caught.value.response.headers["retry-after"] == "5"
        for stream in streams:
            stream.close()


def test_choices_share_the_tokens_of_their_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    validated: list[torch.Tensor] = []

    def validate(given: list[int], vocab_size: int) -> torch.Tensor:
        validated.append(torch.tensor(given))
        return validated[-1]

    monkeypatch.setattr(service_module, "validate_tokens", validate)
    with (
        service(max_sequences=1, waiting=2) as one,
        listening(one) as address,
        client(address) as openai,
    ):
        prefilled: list[int] = []
        add = one.model(None).thread.scheduler.add

        def spy(sequence: Sequence) -> None:
            prefilled.append(sequence.to_prefill.data_ptr())
            add(sequence)

        monkeypatch.setattr(one.model(None).thread.scheduler, "add", spy)
        settings: Any = {"model": NAME, "prompt": PROMPT, "max_tokens": 1}
        openai.completions.create(**settings, n=3)
        assert prefilled == [validated[0].data_ptr()] * 3
        # More choices than could ever run are refused before the prompt is tokenized.
        with pytest.raises(BadRequestError, match="n=4 must be at most 3"):
            openai.completions.create(**settings, n=4)
        assert len(validated) == 1


def test_limits() -> None:
    with (
        service(prompt_tokens=50, new_tokens=4, body_bytes=2_000) as one,
        listening(one) as address,
        client(address) as openai,
    ):
        with pytest.raises(BadRequestError, match="accepts at most 50"):
            openai.completions.create(model=NAME, prompt=[5] * 51)
        answer = openai.completions.create(model=NAME, prompt="a", max_tokens=9, temperature=0)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 4
        with pytest.raises(APIStatusError, match="larger than 2000 bytes") as caught:
            openai.completions.create(model=NAME, prompt="a" * 3_000)
        assert caught.value.status_code == 413


def test_time_is_limited() -> None:
    with (
        service(seconds=0.2, is_endless=True) as one,
        listening(one) as address,
        client(address) as openai,
        pytest.raises(APIStatusError, match="longer than this server allows") as caught,
    ):
        openai.completions.create(model=NAME, prompt="a", max_tokens=100_000)
    assert caught.value.status_code == 504


def test_an_api_key_is_required() -> None:
    with service() as one, listening(one, api_key="secret") as address:
        assert httpx.get(f"{address}/health").status_code == 200
        with (
            client(address, "wrong") as openai,
            pytest.raises(AuthenticationError, match="API key is missing or wrong"),
        ):
            openai.models.list()
        with client(address, "secret") as openai:
            assert openai.models.list().data[0].id == NAME


def test_a_shutdown_ends_running_streams_with_an_error() -> None:
    with (
        service(is_endless=True) as one,
        listening(one) as address,
        client(address) as openai,
    ):
        stream = openai.completions.create(
            model=NAME, prompt=PROMPT, max_tokens=100_000, stream=True
        )
        pieces = iter(stream)
        next(pieces)
        one.model(None).thread.close()
        with pytest.raises(APIError, match="the server is shutting down; retry in 5 s"):
            list(pieces)
        with pytest.raises(
            APIStatusError, match="the server is shutting down; retry in 5 s"
        ) as caught:
            openai.completions.create(model=NAME, prompt="a", max_tokens=1)
        assert caught.value.status_code == 503


def test_nan_logits_fail_only_their_own_sequence() -> None:
    """A sum of weights that overflows, for one."""
    broken = tiny_llama()
    with torch.no_grad():
        broken.lm_head.weight.fill_(float("nan"))
    engine = Engine(broken, CAPACITY, POLICY)
    with (
        service(engines={NAME: engine}) as one,
        listening(one) as address,
        client(address) as openai,
    ):
        for _ in range(2):
            with pytest.raises(APIStatusError, match="logits are not all numbers") as caught:
                openai.completions.create(model=NAME, prompt="a", temperature=1)
            assert caught.value.status_code == 500
        assert one.model(None).thread.num_open == 0


def test_an_error_of_a_step_fails_no_waiting_request(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = new_engine(max_sequences=1)
    decode, are_queued = engine.scheduler.runner.decode, threading.Event()

    def fail_once(*arguments: Any) -> Any:
        assert are_queued.wait(20)
        monkeypatch.setattr(engine.scheduler.runner, "decode", decode)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine.scheduler.runner, "decode", fail_once)
    with (
        service(engines={NAME: engine}) as one,
        listening(one) as address,
        client(address) as openai,
        ThreadPoolExecutor(4) as pool,
    ):

        def ask() -> str:
            settings: Any = {"model": NAME, "prompt": PROMPT, "max_tokens": 5, "temperature": 0}
            try:
                return openai.completions.create(**settings).choices[0].text
            except APIStatusError as error:
                return str(error.status_code)

        answers = [pool.submit(ask) for _ in range(4)]
        until = time.monotonic() + 20
        while one.model(None).thread.num_waiting < 3:
            assert time.monotonic() < until
            time.sleep(0.01)
        are_queued.set()
        found = sorted(answer.result() for answer in answers)
    assert found == sorted(["500", *[expected(tokens(PROMPT), 5)] * 3])


def test_a_slow_client_counts_until_its_response_ends() -> None:
    with (
        service(max_sequences=1, waiting=0) as one,
        listening(one) as address,
        client(address) as openai,
    ):
        settings: Any = {"model": NAME, "prompt": PROMPT, "max_tokens": 3, "temperature": 0}
        stream = openai.completions.create(**settings, stream=True)
        list(stream)
        openai.completions.create(**settings)
        until = time.monotonic() + 20
        while one.model(None).thread.num_open:
            assert time.monotonic() < until


def test_health_fails_after_the_engine_thread_has_ended() -> None:
    with service() as one, listening(one) as address:
        assert httpx.get(f"{address}/health").status_code == 200
        one.model(None).thread.close()
        assert httpx.get(f"{address}/health").status_code == 503
