"""From engines to a service, and to a server that listens."""

import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, final

import uvicorn
from filelock import FileLock, Timeout

from lacache.engine.engine import Engine
from lacache.engine.eos import eos_token_ids
from lacache.errors import ConfigError, InputError
from lacache.models.model_info import model_info
from lacache.server.address import validate_address
from lacache.server.app import make_app
from lacache.server.engine_thread import EngineThread
from lacache.server.holding import Holding
from lacache.server.keeping import Keeping
from lacache.server.limits import Limits
from lacache.server.metrics import Metrics
from lacache.server.prompts import Prompts
from lacache.server.served import Served
from lacache.server.service import Service
from lacache.server.state.prefix_files import PrefixFiles
from lacache.server.state.prefixes import Prefixes
from lacache.server.state.sessions import Sessions

_LAST_SECONDS = 3
"""For texts to come to their end when the server is asked to."""

_LOOPBACK = ("localhost", "127.0.0.1", "::1")

_SLACK = 16 * 2**20
"""Bytes of a session's file that are no keys or values, at most."""


def bind(host: str, port: int, api_key: str | None) -> socket.socket:
    """A socket that listens, before anything that takes long.

    Args:
        host: an address of this machine.
        port: on it; 0 takes a free one.
        api_key: what clients must send.

    Raises:
        ConfigError: others can reach it, and there is no key.
        InputError: the address is not of this machine, or the port is taken.
    """
    validate_address(host, api_key)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"cannot listen at {host} port {port}: {reason}; try --port {port + 1 if port else 0}"
        ) from error


def serve(service: Service, listening: socket.socket, *, api_key: str | None) -> None:
    """Answer until Ctrl-C or SIGTERM; requests that are answered then are ended.

    Args:
        service: what answers.
        listening: from `bind`.
        api_key: what clients must send.
    """
    hosts = () if api_key else (*_LOOPBACK, listening.getsockname()[0])
    config = uvicorn.Config(
        make_app(service, api_key=api_key, hosts=hosts),
        log_level="warning",
        timeout_graceful_shutdown=3 * _LAST_SECONDS,
    )
    _Server(config, service).run(sockets=[listening])


@final
class _Server(uvicorn.Server):
    """Tells who still listens when it is asked to end, and only then hangs up."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Not to be raised again at the end: there is something to keep after that."""
        former = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """In the midst of whatever the thread does, so nothing here may wait for a lock."""
        for served in self._service.all.values():
            threading.Thread(target=served.thread.close, args=(_LAST_SECONDS,)).start()
        super().handle_exit(sig, frame)


@contextmanager
def make_service(
    engines: Mapping[str, Engine],
    model: Any,
    tokenizer: Any,
    limits: Limits,
    keeping: Keeping,
    *,
    eos: frozenset[int] | None = None,
) -> Iterator[Service]:
    """A service; at its end texts are cut, and what sessions have written is kept.

    Args:
        engines: of `model`, by the names that clients know; nobody else's from now on.
        model: of transformers.
        tokenizer: of it.
        limits: of requests.
        keeping: of what has ended.
        eos: tokens that end a text; None asks model and tokenizer.

    Raises:
        ConfigError: two engines are the same.
        InputError: the folder cannot be used.
    """
    kinds: dict[str, str] = {}
    for name, engine in engines.items():
        other = kinds.setdefault(engine.kind, name)
        if other != name:
            raise ConfigError(f"{name} keeps the same as {other}; leave one of the budgets out")
    size = model.get_input_embeddings().num_embeddings
    ends = eos_token_ids(model, tokenizer) if eos is None else eos
    with _own(keeping.folder):
        served: list[Served] = []
        try:
            for name, engine in engines.items():
                served.append(_served(name, engine, model, tokenizer, limits, keeping))
            prompts = Prompts(tokenizer, size, limits)
            yield Service(served, prompts, ends, limits, Metrics())
        finally:
            for each in served:
                each.close()


def _served(
    name: str, engine: Engine, model: Any, tokenizer: Any, limits: Limits, keeping: Keeping
) -> Served:
    files, sessions = None, None
    if keeping.folder is not None:
        # What one engine has kept is of no use to another kind.
        folder = keeping.folder / engine.kind[:16]
        with engine.open() as session:
            empty = session.snapshot()
        sessions = Sessions(
            folder / "sessions",
            empty,
            engine.check,
            most=keeping.sessions,
            file_bytes=engine.row_bytes + _SLACK,
        )
        if keeping.memory_bytes and keeping.disk_bytes:
            files = PrefixFiles(folder / "prefixes", engine.kind, keeping.disk_bytes)
    info = model_info(model)
    holding = Holding(
        engine.policy.groups,
        len(info.growing),
        engine.row_bytes,
        info.bytes_per_token,
    )
    thread = EngineThread(engine, tokenizer, waiting=limits.waiting)
    return Served(name, thread, Prefixes(keeping.memory_bytes, files), sessions, holding)


def validate_folder(folder: Path | None) -> None:
    """Make the folder where it is missing, and try whether this process may have it.

    Raises:
        InputError: it cannot be used, or another server has it.
    """
    with _own(folder):
        pass


@contextmanager
def _own(folder: Path | None) -> Iterator[None]:
    """The folder, made where it is missing, for this process alone."""
    if folder is None:
        yield
        return
    if folder.exists() and not folder.is_dir():
        raise InputError(f"cannot use the folder {folder}: it is a file; give another")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"another server uses {folder}; end it, or give another folder") from error
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot use the folder {folder}: {reason}; give another") from error
    try:
        yield
    finally:
        lock.release()
