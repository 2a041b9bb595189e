"""A server in this process, with a tiny model."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from openai import OpenAI

from lacache import Engine, LadderConfig
from lacache.engine.eos import eos_token_ids
from lacache.server.app import make_app
from lacache.server.engine_thread import EngineThread
from lacache.server.limits import Limits
from lacache.server.service import Model, Service
from tests.engine.tiny import tiny_llama, tiny_tokenizer

POLICY = LadderConfig(capacity=40, span=2, overlap=1, refill=5)
NAME = "tiny"


def new_engine(rows: int = 2) -> Engine:
    return Engine.from_model(tiny_llama(), POLICY, rows=rows, segment=16)


@contextmanager
def service(rows: int = 2, *, is_endless: bool = False, **limits: Any) -> Iterator[Service]:
    """With a tiny model; where it is endless, no token ends a text."""
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    allowed = Limits(**limits)
    thread = EngineThread(new_engine(rows), tokenizer, waiting=allowed.waiting)
    ends = frozenset() if is_endless else eos_token_ids(model, tokenizer)
    try:
        yield Service(thread, Model(NAME, tokenizer, ends, model.config.vocab_size), allowed)
    finally:
        thread.close()


@contextmanager
def listening(one: Service, api_key: str | None = None) -> Iterator[str]:
    """The address of a real server."""
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
    """What the engine writes, greedily."""
    engine = new_engine()
    tokens = list(engine.submit(prompt, max_new_tokens=num_new))
    text: str = tiny_tokenizer().decode(tokens, skip_special_tokens=True)
    return text
