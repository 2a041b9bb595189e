"""A server in this process, with a tiny model."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import uvicorn
from openai import OpenAI

from lacache import Engine, Ladder
from lacache.server.app import make_app
from lacache.server.service import Service
from lacache.server.settings import Limits, ServerSettings, StorageSettings
from lacache.server.start import make_service
from tests.engine.tiny import tiny_llama, tiny_tokenizer

POLICY = Ladder(span=2, overlap=1, evict_batch=5)
CAPACITY = 40
NAME = "tiny"


def new_engine(max_sequences: int = 2, capacity: int = CAPACITY) -> Engine:
    return Engine(tiny_llama(), capacity, POLICY, max_sequences=max_sequences, chunk_size=16)


@contextmanager
def service(
    max_sequences: int = 2,
    *,
    is_endless: bool = False,
    storage: StorageSettings | None = None,
    engines: Mapping[str, Engine] | None = None,
    **limits: Any,
) -> Iterator[Service]:
    """Serve a tiny model; if it is endless, no token ends a sequence."""
    with make_service(
        engines or {NAME: new_engine(max_sequences)},
        tiny_llama(),
        tiny_tokenizer(),
        ServerSettings(limits=Limits(**limits), storage=storage or StorageSettings()),
        eos_token_ids=frozenset() if is_endless else None,
    ) as one:
        yield one


@contextmanager
def listening(one: Service, api_key: str | None = None) -> Iterator[str]:
    """Run a real server and yield its address."""
    config = uvicorn.Config(make_app(one, api_key=api_key), port=0, log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def client(address: str, api_key: str = "none") -> OpenAI:
    return OpenAI(base_url=f"{address}/v1", api_key=api_key, max_retries=0)


def expected(prompt: list[int], num_new: int) -> str:
    """Return what the engine generates greedily."""
    engine = new_engine()
    tokens = list(engine.submit(prompt, max_new_tokens=num_new))
    text: str = tiny_tokenizer().decode(tokens, skip_special_tokens=True)
    return text
