"""Start of a server: build a service from engines, then run it at an address."""

import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, final

import uvicorn
from filelock import FileLock, Timeout

from lacache.common.packages import notice_once
from lacache.engine.detokenizer import find_eos_token_ids
from lacache.engine.engine import Engine
from lacache.engine.snapshot import Snapshot, kind_of_version_0_1
from lacache.engine.snapshot_file import read_header
from lacache.errors import ConfigError, InputError
from lacache.server.app import make_app
from lacache.server.engine_thread import EngineThread
from lacache.server.metrics import Metrics
from lacache.server.prefix_cache import PrefixCache, PrefixFiles
from lacache.server.served_model import CacheInspector, ServedModel
from lacache.server.service import Prompts, Service
from lacache.server.session_store import SessionStore
from lacache.server.settings import ServerSettings

_GRACE_SECONDS = 3
"""Time for running sequences to end after the server is asked to shut down."""

_LOOPBACK = ("localhost", "127.0.0.1", "::1")

_METADATA_BYTES = 16 * 2**20
"""Upper bound of what a session's file contains besides keys and values."""


@contextmanager
def make_service(
    engines: Mapping[str, Engine],
    model: Any,
    tokenizer: Any,
    settings: ServerSettings,
    *,
    eos_token_ids: frozenset[int] | None = None,
) -> Iterator[Service]:
    """Build a service; at exit, end running sequences and save their sessions.

    Args:
        engines: engines of `model` by the names that clients use; the service owns them.
        model: a model of transformers.
        tokenizer: the tokenizer of `model`.
        settings: limits of requests, prefix cache and sessions.
        eos_token_ids: tokens that end a sequence; None takes those of the model and the tokenizer.

    Raises:
        ConfigError: two engines are the same.
        InputError: the folder cannot be used.
    """
    names: dict[str, str] = {}
    for name, engine in engines.items():
        other = names.setdefault(engine.kind, name)
        if other != name:
            raise ConfigError(
                f"{name} and {other} keep the same tokens; leave one of the budgets out"
            )
    if eos_token_ids is None:
        eos_token_ids = find_eos_token_ids(model, tokenizer)
    vocab_size = model.get_input_embeddings().num_embeddings
    with _locked(settings.storage.folder), ExitStack() as stack:
        models: list[ServedModel] = []
        for name, engine in engines.items():
            models.append(_served_model(name, engine, settings))
            stack.callback(models[-1].close)
        _notice_sessions_left(settings.storage.folder)
        prompts = Prompts(tokenizer, vocab_size, settings.limits)
        yield Service(models, prompts, eos_token_ids, settings.limits, Metrics())


def _served_model(name: str, engine: Engine, settings: ServerSettings) -> ServedModel:
    storage = settings.storage
    files, sessions = None, None
    if storage.folder is not None:
        # Snapshots of one engine do not fit an engine of another kind.
        folder = storage.folder / _folder_name(engine.kind)
        _adopt_sessions(storage.folder, folder, engine)
        with engine.open() as session:
            empty = session.snapshot()
        sessions = SessionStore(
            folder / "sessions",
            empty,
            engine.validate_snapshot,
            max_sessions=storage.sessions,
            file_bytes=engine.bytes_per_sequence + _METADATA_BYTES,
        )
        if storage.memory_bytes and storage.disk_bytes:
            files = PrefixFiles(folder / "prefixes", engine.kind, storage.disk_bytes)
    inspector = CacheInspector(engine.layout)
    thread = EngineThread(engine, waiting=settings.limits.waiting)
    prefix_cache = PrefixCache(storage.memory_bytes, files)
    return ServedModel(name, thread, prefix_cache, sessions, inspector)


def _adopt_sessions(storage: Path, folder: Path, engine: Engine) -> None:
    """Rename the folder that lacache 0.1 made for such an engine, under another kind."""
    if folder.exists():
        return
    for path in sorted(storage.glob("*/sessions/*.lacache")):
        old = path.parents[1]
        with suppress(InputError):
            if _is_of_0_1(path):
                engine.validate_snapshot(Snapshot.load(path))
                old.rename(folder)
                return


def _notice_sessions_left(storage: Path | None) -> None:
    """Tell of the folders of lacache 0.1 that no engine could continue."""
    paths = [] if storage is None else sorted(storage.glob("*/sessions/*.lacache"))
    for folder in dict.fromkeys(path.parents[1] for path in paths):
        with suppress(InputError):
            if any(_is_of_0_1(path) for path in paths if path.parents[1] == folder):
                notice_once(
                    f"{folder} has sessions of lacache 0.1, which this server cannot continue; "
                    "serve the policy and budget that they were saved with, and positions=slots"
                )


def _is_of_0_1(path: Path) -> bool:
    """Return whether lacache 0.1 saved a session in a folder of its own.

    Those that were imported lie in folders of other kinds.

    Raises:
        InputError: the file is no snapshot.
    """
    kind = kind_of_version_0_1(read_header(path))
    return kind is not None and path.parents[1].name == _folder_name(kind)


def _folder_name(kind: str) -> str:
    return kind[:16]


def validate_folder(folder: Path | None) -> None:
    """Create the storage folder if it is missing, and check that this process can lock it.

    Raises:
        InputError: the folder cannot be used, or another server uses it.
    """
    with _locked(folder):
        pass


@contextmanager
def _locked(folder: Path | None) -> Iterator[None]:
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


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket, so that a wrong address fails before a model is loaded.

    Args:
        host: an address of this machine.
        port: a port; 0 chooses a free one.

    Raises:
        InputError: the address is not of this machine, or the port is in use.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.create_server(address[:2], family=family)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"cannot listen at {host} port {port}: {reason}; try --port {port + 1 if port else 0}"
        ) from error
    # Connections inherit it. asyncio sets it only where the socket names its protocol, and without
    # it the second packet of a response waits for the client's delayed acknowledgement.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def run(
    service: Service,
    listening: socket.socket,
    *,
    api_key: str | None,
    on_start: Callable[[], None] = lambda: None,
) -> None:
    """Answer requests until Ctrl-C or SIGTERM.

    Args:
        service: from `make_service`.
        listening: from `listen`.
        api_key: key that clients must send.
        on_start: called once, when it accepts connections and handles signals.
    """
    hosts = () if api_key else (*_LOOPBACK, listening.getsockname()[0])
    config = uvicorn.Config(
        make_app(service, api_key=api_key, hosts=hosts),
        log_level="warning",
        timeout_graceful_shutdown=3 * _GRACE_SECONDS,
    )
    _Server(config, service, on_start).run(sockets=[listening])


@final
class _Server(uvicorn.Server):
    """Uvicorn, which on shutdown ends running sequences before their connections."""

    def __init__(
        self, config: uvicorn.Config, service: Service, on_start: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._service = service
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections; signals are handled already."""
        await super().startup(sockets)
        if self.started:
            self._on_start()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals without raising them again at exit, where sessions are still saved."""
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
        """Start the shutdown in other threads, since a signal handler must not wait for a lock."""
        for model in self._service.models.values():
            threading.Thread(target=model.thread.close, args=(_GRACE_SECONDS,)).start()
        super().handle_exit(sig, frame)
