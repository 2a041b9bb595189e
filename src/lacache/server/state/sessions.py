"""Sessions that have a name, each in a file that is whole at any moment."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

from lacache.engine.snapshot import Snapshot
from lacache.engine.snapshot_file import UNFINISHED, read_header, sweep
from lacache.errors import InputError
from lacache.server.errors import ConflictError, NotFoundError, StorageError

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_SUFFIX = ".lacache"


@final
@dataclass(frozen=True)
class SessionFacts:
    """What is known of a session without loading it.

    Args:
        name: of it.
        num_seen: tokens that were read; None where its file is damaged.
        num_bytes: of its file, which do not grow with the text.
        changed: seconds since the epoch.
    """

    name: str
    num_seen: int | None
    num_bytes: int
    changed: float


@final
class Sessions:
    """The sessions of one kind of engine, in a folder of their own. From any thread.

    Args:
        folder: made where it is missing; nobody else's.
        empty: where a new session stands.
        check: raises InputError where a snapshot cannot be gone on from.
        most: how many there may be.
        file_bytes: more than any session's file has.
    """

    def __init__(
        self,
        folder: Path,
        empty: Snapshot,
        check: Callable[[Snapshot], None],
        *,
        most: int,
        file_bytes: int,
    ) -> None:
        self._folder = folder
        self._empty = empty
        self._check = check
        self._most = most
        self.file_bytes = file_bytes
        self._lock = threading.Lock()
        self._busy: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        sweep(folder)

    def all(self) -> list[SessionFacts]:
        """In the order of their names."""
        names = [path.name.removesuffix(_SUFFIX) for path in self._folder.glob(f"*{_SUFFIX}")]
        found = []
        for name in sorted(names):
            # One may be deleted meanwhile, and other files are nobody's.
            with suppress(NotFoundError, InputError):
                found.append(self.info(name))
        return found

    def info(self, name: str) -> SessionFacts:
        """Of one.

        Raises:
            NotFoundError: there is none of that name.
        """
        path = self._there(name)
        try:
            stat = path.stat()
        except FileNotFoundError as error:
            raise _missing(name) from error
        try:
            num_seen = read_header(path)["num_seen"]
        except InputError:
            num_seen = None
        return SessionFacts(name, num_seen, stat.st_size, stat.st_mtime)

    def create(self, name: str) -> SessionFacts:
        """An empty session.

        Raises:
            ConflictError: there is one of that name, or as many as may be.
            StorageError: it cannot be written.
        """
        with self._taken(name):
            self._save(self._empty, self._free(name))
        return self.info(name)

    def fork(self, name: str, new_name: str) -> SessionFacts:
        """Another session that stands where this one stood when it was saved last.

        Raises:
            NotFoundError: there is none of that name.
            ConflictError: there is one of the new name, or as many as may be.
            StorageError: it cannot be read or written.
        """
        path = self._there(name)
        with self._taken(new_name):
            new_path = self._free(new_name)
            self._save(self._load(path), new_path)
        return self.info(new_name)

    def delete(self, name: str) -> None:
        """Forget one.

        Raises:
            NotFoundError: there is none of that name.
            ConflictError: it is being written.
        """
        path = self._there(name)
        with self._taken(name):
            path.unlink(missing_ok=True)

    def exported(self, name: str) -> bytes:
        """Its file.

        Raises:
            NotFoundError: there is none of that name.
        """
        try:
            return self._there(name).read_bytes()
        except FileNotFoundError as error:
            raise _missing(name) from error

    def imported(self, name: str, data: bytes) -> SessionFacts:
        """A session from such a file.

        Raises:
            ConflictError: there is one of that name, or as many as may be.
            InputError: it is no session, is damaged, or belongs to another model or cache.
            StorageError: it cannot be written.
        """
        with self._taken(name):
            path = self._free(name)
            temporary = self._folder / f"{UNFINISHED}import-{name}"
            try:
                temporary.write_bytes(data)
                found = Snapshot.load(temporary)
                self._check(found)
            except InputError as error:
                raise InputError(str(error).replace(str(temporary), "the file")) from error
            except OSError as error:
                raise StorageError(f"the session cannot be written: {error.strerror}") from error
            finally:
                temporary.unlink(missing_ok=True)
            self._save(found, path)
        return self.info(name)

    def lease(self, name: str) -> "Lease":
        """The right to go on with a session, which one text has at a time.

        Raises:
            NotFoundError: there is none of that name.
            ConflictError: another text has it.
            StorageError: it cannot be read.
        """
        self._there(name)
        self._take(name)
        try:
            num_seen = self.info(name).num_seen
            if num_seen is None:
                raise StorageError(f"the session {name!r} is damaged; delete it, or import a copy")
        except BaseException:
            self.release(name)
            raise
        return Lease(self, name, num_seen)

    def release(self, name: str) -> None:
        """Give the right back; for `Lease`."""
        with self._lock:
            self._busy.discard(name)

    def load(self, name: str) -> Snapshot:
        """Where a session stands; for `Lease`."""
        return self._load(self._path(name))

    def save(self, name: str, snapshot: Snapshot) -> None:
        """Where it stands now; for `Lease`."""
        self._save(snapshot, self._path(name))

    def _take(self, name: str) -> None:
        # Held for no longer than this: others wait for it who must not wait for a disk.
        with self._lock:
            if name in self._busy:
                raise ConflictError(f"the session {name!r} is being written; wait for its answer")
            self._busy.add(name)

    @contextmanager
    def _taken(self, name: str) -> Iterator[None]:
        self._path(name)
        self._take(name)
        try:
            yield
        finally:
            self.release(name)

    def _load(self, path: Path) -> Snapshot:
        try:
            return Snapshot.load(path)
        except InputError as error:
            raise StorageError(_without_folder(error, path)) from error

    def _save(self, snapshot: Snapshot, path: Path) -> None:
        try:
            snapshot.save(path)
        except InputError as error:
            raise StorageError(_without_folder(error, path)) from error

    def _there(self, name: str) -> Path:
        path = self._path(name)
        if not path.is_file():
            raise _missing(name)
        return path

    def _free(self, name: str) -> Path:
        path = self._path(name)
        if path.exists():
            raise ConflictError(f"there is a session {name!r} already; take another name")
        if len(list(self._folder.glob(f"*{_SUFFIX}"))) >= self._most:
            raise ConflictError(f"there are {self._most} sessions, the most; delete one")
        return path

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise InputError(
                f"the session's name {name[:80]!r} must have 1 to 64 of a-z, 0-9, - and _, and "
                "begin with a letter or digit; try 'diary-1'"
            )
        return self._folder / f"{name}{_SUFFIX}"


def _without_folder(error: InputError, path: Path) -> str:
    """Where the server keeps its files is not for its clients."""
    return str(error).replace(str(path), f"the session {path.name.removesuffix(_SUFFIX)!r}")


def _missing(name: str) -> NotFoundError:
    return NotFoundError(
        f"there is no session {name!r} of this model and budget; POST /v1/sessions makes one"
    )


@final
class Lease:
    """The right to go on with a session."""

    def __init__(self, sessions: Sessions, name: str, num_seen: int) -> None:
        self._sessions = sessions
        self._name = name
        self.num_seen = num_seen
        """Tokens that it has read."""

    def load(self) -> Snapshot:
        """Where it stands.

        Raises:
            StorageError: it cannot be read.
        """
        return self._sessions.load(self._name)

    def save(self, snapshot: Snapshot) -> None:
        """Where it stands now.

        Raises:
            StorageError: it cannot be written; what was there is unchanged.
        """
        self._sessions.save(self._name, snapshot)

    def close(self) -> None:
        """Give it back, once."""
        self._sessions.release(self._name)
