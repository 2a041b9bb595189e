"""Named sessions, each in a file that is whole at any moment."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

from torch import Tensor

from lacache.engine.sequence import Sequence
from lacache.engine.snapshot import Snapshot
from lacache.engine.snapshot_file import UNFINISHED, read_header, sweep
from lacache.errors import InputError
from lacache.server.completion import StateStore
from lacache.server.errors import ConflictError, NotFoundError, StorageError

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_SUFFIX = ".lacache"


@final
@dataclass(frozen=True)
class SessionInfo:
    """What is known of a session without loading it.

    Args:
        name: its name.
        num_seen: tokens that the model has processed; None if its file is damaged.
        num_bytes: bytes of its file, which do not grow with the session.
        changed: time of the last change, in seconds since the epoch.
    """

    name: str
    num_seen: int | None
    num_bytes: int
    changed: float


@final
class SessionStore:
    """The sessions of one kind of engine, in a folder of their own; for any thread.

    Args:
        folder: created if missing; no other process may use it.
        empty: snapshot of a new session.
        validate: raises InputError for a snapshot that the engine cannot resume.
        max_sessions: most sessions.
        file_bytes: upper bound of the bytes of a session's file.
    """

    def __init__(
        self,
        folder: Path,
        empty: Snapshot,
        validate: Callable[[Snapshot], None],
        *,
        max_sessions: int,
        file_bytes: int,
    ) -> None:
        self._folder = folder
        self._empty = empty
        self._validate = validate
        self._max_sessions = max_sessions
        self.file_bytes = file_bytes
        self._lock = threading.Lock()
        self._busy: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        sweep(folder)

    def all(self) -> list[SessionInfo]:
        """Return all sessions, ordered by name."""
        names = [path.name.removesuffix(_SUFFIX) for path in self._folder.glob(f"*{_SUFFIX}")]
        found = []
        for name in sorted(names):
            # A session may be deleted meanwhile, and other files are not sessions.
            with suppress(NotFoundError, InputError):
                found.append(self.info(name))
        return found

    def info(self, name: str) -> SessionInfo:
        """Return what is known of a session.

        Raises:
            NotFoundError: there is no session of that name.
        """
        path = self._existing(name)
        try:
            stat = path.stat()
        except FileNotFoundError as error:
            raise _not_found(name) from error
        try:
            num_seen = read_header(path)["num_seen"]
        except InputError:
            num_seen = None
        return SessionInfo(name, num_seen, stat.st_size, stat.st_mtime)

    def create(self, name: str) -> SessionInfo:
        """Create an empty session.

        Raises:
            ConflictError: the name is taken, or there are too many sessions.
            StorageError: it cannot be written.
        """
        with self._reserved(name):
            self._save(self._unused(name), self._empty)
        return self.info(name)

    def fork(self, name: str, new_name: str) -> SessionInfo:
        """Create a session from the last stored state of another.

        Raises:
            NotFoundError: there is no session of that name.
            ConflictError: the new name is taken, or there are too many sessions.
            StorageError: a file cannot be read or written.
        """
        path = self._existing(name)
        with self._reserved(new_name):
            new_path = self._unused(new_name)
            self._save(new_path, self._load(path))
        return self.info(new_name)

    def delete(self, name: str) -> None:
        """Delete a session.

        Raises:
            NotFoundError: there is no session of that name.
            ConflictError: a request is using it.
        """
        path = self._existing(name)
        with self._reserved(name):
            path.unlink(missing_ok=True)

    def export_file(self, name: str) -> bytes:
        """Return the file of a session.

        Raises:
            NotFoundError: there is no session of that name.
        """
        try:
            return self._existing(name).read_bytes()
        except FileNotFoundError as error:
            raise _not_found(name) from error

    def import_file(self, name: str, data: bytes) -> SessionInfo:
        """Create a session from an exported file.

        Raises:
            ConflictError: the name is taken, or there are too many sessions.
            InputError: it is no session, is damaged, or is of another model or cache.
            StorageError: it cannot be written.
        """
        with self._reserved(name):
            path = self._unused(name)
            temporary = self._folder / f"{UNFINISHED}import-{name}"
            try:
                temporary.write_bytes(data)
                found = Snapshot.load(temporary)
                self._validate(found)
            except InputError as error:
                raise InputError(str(error).replace(str(temporary), "the file")) from error
            except OSError as error:
                raise StorageError(f"the session cannot be written: {error.strerror}") from error
            finally:
                temporary.unlink(missing_ok=True)
            self._save(path, found)
        return self.info(name)

    def lease(self, name: str) -> "Lease":
        """Return the exclusive right to continue a session.

        Raises:
            NotFoundError: there is no session of that name.
            ConflictError: another request is using it.
            StorageError: it cannot be read.
        """
        self._existing(name)
        self._reserve(name)
        try:
            num_seen = self.info(name).num_seen
            if num_seen is None:
                raise StorageError(f"the session {name!r} is damaged; delete it, or import a copy")
        except BaseException:
            self._release(name)
            raise
        path = self._path(name)
        return Lease(
            num_seen,
            load=partial(self._load, path),
            save=partial(self._save, path),
            end=partial(self._release, name),
        )

    def _reserve(self, name: str) -> None:
        # Nothing slow may happen under the lock: other requests wait for it.
        with self._lock:
            if name in self._busy:
                raise ConflictError(
                    f"another request uses the session {name!r}; wait for its response"
                )
            self._busy.add(name)

    def _release(self, name: str) -> None:
        with self._lock:
            self._busy.discard(name)

    @contextmanager
    def _reserved(self, name: str) -> Iterator[None]:
        self._path(name)
        self._reserve(name)
        try:
            yield
        finally:
            self._release(name)

    def _load(self, path: Path) -> Snapshot:
        try:
            return Snapshot.load(path)
        except InputError as error:
            raise StorageError(_without_folder(error, path)) from error

    def _save(self, path: Path, snapshot: Snapshot) -> None:
        try:
            snapshot.save(path)
        except InputError as error:
            raise StorageError(_without_folder(error, path)) from error

    def _existing(self, name: str) -> Path:
        path = self._path(name)
        if not path.is_file():
            raise _not_found(name)
        return path

    def _unused(self, name: str) -> Path:
        path = self._path(name)
        if path.exists():
            raise ConflictError(f"a session {name!r} exists already; choose another name")
        if len(list(self._folder.glob(f"*{_SUFFIX}"))) >= self._max_sessions:
            raise ConflictError(
                f"{self._max_sessions} sessions are stored, and no more can be; delete one"
            )
        return path

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise InputError(
                f"the session's name {name[:80]!r} must have 1 to 64 of a-z, 0-9, - and _, and "
                "begin with a letter or digit; try 'diary-1'"
            )
        return self._folder / f"{name}{_SUFFIX}"


@final
@dataclass(frozen=True)
class Lease(StateStore):
    """The exclusive right to continue a session, made by `SessionStore.lease`.

    Args:
        num_seen: tokens that the model has processed.
        load: returns the stored state, or raises StorageError.
        save: stores a new state, or raises StorageError and leaves the old one unchanged.
        end: gives the right back; idempotent.
    """

    num_seen: int
    load: Callable[[], Snapshot]
    save: Callable[[Snapshot], None]
    end: Callable[[], None]

    def find_snapshot(self, prompt: Tensor) -> tuple[Snapshot, int]:
        """Return the stored state, which has no token of the prompt."""
        return self.load(), 0

    def on_prompt_done(self, prompt: Tensor, snapshot: Callable[[], Snapshot]) -> None:
        """Do nothing, since a request without a reply leaves its session unchanged."""

    def on_end(
        self, tokens: Tensor, sequence: Sequence, snapshot: Callable[[], Snapshot]
    ) -> Callable[[], None]:
        """Return what saves the state, without the token that ended the completion."""
        if sequence.eos_token_ids.intersection(tokens[-1:].tolist()):
            sequence.drop_last()
        return partial(self.save, snapshot())

    def release(self) -> None:
        """Give the right back; idempotent."""
        self.end()


def _without_folder(error: InputError, path: Path) -> str:
    """Return the message without the path, which is not for clients."""
    return str(error).replace(str(path), f"the session {path.name.removesuffix(_SUFFIX)!r}")


def _not_found(name: str) -> NotFoundError:
    return NotFoundError(
        f"there is no session {name!r} of this model, budget and kv_dtype; POST /v1/sessions "
        "creates one"
    )
