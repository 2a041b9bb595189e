"""vLLM's OpenAI server with a ladder, the real model and the `openai` client."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openai import APIConnectionError, OpenAI

from lacache import Engine
from lacache.corpora import load_document
from lacache.models import load_model

BUDGET = 256
NAME = "SmolLM2-135M-Instruct"
# Far beyond the 8,192 tokens that the model was trained on.
LONG = 36_000


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """Start a server with `lacache serve`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from lacache.cli import main; main()", "serve"]
    command += ["--engine", "vllm", "--budget", str(BUDGET), "--port", str(port)]
    command += ["--dtype", "float32", "--"]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as stream:
        server = subprocess.Popen(
            [*command, "--enforce-eager"], stdout=stream, stderr=stream, start_new_session=True
        )
    client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    try:
        wait(client, server, log)
        yield client
    finally:
        os.killpg(server.pid, signal.SIGINT)
        server.wait(60)


def wait(client: OpenAI, server: Any, log: Path) -> None:
    """Wait until the server answers."""
    for _ in range(180):
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            client.models.list()
        except APIConnectionError:
            time.sleep(1)
        else:
            return
    raise AssertionError(log.read_text()[-3000:])


@pytest.fixture(scope="module")
def text() -> str:
    return load_document("shakespeare:hamlet").content


def complete(client: OpenAI, prompt: str, num_new: int = 20) -> Any:
    return client.completions.create(model=NAME, prompt=prompt, max_tokens=num_new, temperature=0)


def test_a_prompt_far_beyond_the_trained_context(client: OpenAI, text: str) -> None:
    prompt = text[:LONG]
    answer = complete(client, prompt)
    assert answer.usage.prompt_tokens > 10_000
    loaded = load_model(dtype="float32", progress=False)
    engine = Engine(loaded.model, BUDGET, max_sequences=1)
    ids = loaded.tokenizer(prompt, verbose=False).input_ids
    with engine.open() as session:
        tokens = list(session.generate(ids, max_new_tokens=20))
    assert answer.choices[0].text == loaded.tokenizer.decode(tokens)


def test_streaming_gives_the_same_text(client: OpenAI, text: str) -> None:
    prompt = text[:4_000]
    stream = client.completions.create(
        model=NAME, prompt=prompt, max_tokens=40, temperature=0, stream=True
    )
    pieces = [chunk.choices[0].text for chunk in stream]
    assert len(pieces) > 5
    assert "".join(pieces) == complete(client, prompt, 40).choices[0].text


def test_chat(client: OpenAI) -> None:
    question = {"role": "user", "content": "What is the capital of France?"}
    answer = client.chat.completions.create(
        model=NAME, messages=[question], max_tokens=20, temperature=0
    )
    assert "Paris" in answer.choices[0].message.content


def test_thirty_two_clients_at_once(client: OpenAI, text: str) -> None:
    """Each client gets the completion that it gets alone."""
    prompts = [text[1_000 * i : 1_000 * i + 300 + 60 * i] for i in range(32)]
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda prompt: complete(client, prompt), prompts))
    for number in (0, 13, 31):
        assert found[number].choices[0].text == complete(client, prompts[number]).choices[0].text
    assert all(answer.usage.completion_tokens == 20 for answer in found)
