"""From a model to a server that listens."""

from typing import Any

import uvicorn

from lacache.engine.engine import Engine
from lacache.engine.eos import eos_token_ids
from lacache.server.address import check_address
from lacache.server.app import make_app
from lacache.server.engine_thread import EngineThread
from lacache.server.limits import Limits
from lacache.server.service import Model, Service


def serve_engine(
    engine: Engine,
    model: Any,
    tokenizer: Any,
    name: str,
    *,
    host: str,
    port: int,
    api_key: str | None,
    limits: Limits,
) -> None:
    """Listen until Ctrl-C or SIGTERM; requests that are answered then are ended.

    Args:
        engine: of `model`; nobody else's from now on.
        model: of transformers.
        tokenizer: of it.
        name: as clients call it.
        host: an address of this machine.
        port: on it; 0 takes a free one.
        api_key: what clients must send.
        limits: of requests.

    Raises:
        ConfigError: others can reach it, and there is no key.
    """
    check_address(host, api_key)
    thread = EngineThread(engine, tokenizer, waiting=limits.waiting)
    ends = eos_token_ids(model, tokenizer)
    size = model.get_input_embeddings().num_embeddings
    service = Service(thread, Model(name, tokenizer, ends, size), limits)
    try:
        uvicorn.run(
            make_app(service, api_key=api_key),
            host=host,
            port=port,
            log_level="warning",
            timeout_graceful_shutdown=5,
        )
    finally:
        thread.close()
