"""Sessions that have a name, each in a file that is whole at any moment."""

import re
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

from lacache.core.errors import InputError
from lacache.engine.snapshot import Snapshot
from lacache.engine.snapshot_file import read_header
from lacache.server.errors import ConflictError, MissingError

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_SUFFIX = ".lacache"
_UNFINISHED = ".lacache-"
"""How names begin that a killed process leaves behind while it writes."""


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
        most: how many there may be.
        file_bytes: more than any session's file has.
    """

    def __init__(self, folder: Path, empty: Snapshot, *, most: int, file_bytes: int) -> None:
        self._folder = folder
        self._empty = empty
        self._most = most
        self.file_bytes = file_bytes
        self._lock = threading.Lock()
        self._leased: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(f"{_UNFINISHED}*"):
            path.unlink(missing_ok=True)

    def all(self) -> list[SessionFacts]:
        """In the order of their names."""
        names = [path.name.removesuffix(_SUFFIX) for path in self._folder.glob(f"*{_SUFFIX}")]
        found = []
        for name in sorted(names):
            # One may be deleted meanwhile, and other files are nobody's.
            with suppress(MissingError, InputError):
                found.append(self.facts(name))
        return found

    def facts(self, name: str) -> SessionFacts:
        """Of one.

        Raises:
            MissingError: there is none of that name.
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
        """
        with self._lock:
            self._empty.save(self._free(name))
        return self.facts(name)

    def fork(self, name: str, new_name: str) -> SessionFacts:
        """Another session that stands where this one stands.

        Raises:
            MissingError: there is none of that name.
            ConflictError: there is one of the new name, or as many as may be.
        """
        with self._lock:
            Snapshot.load(self._there(name)).save(self._free(new_name))
        return self.facts(new_name)

    def delete(self, name: str) -> None:
        """Forget one.

        Raises:
            MissingError: there is none of that name.
            ConflictError: it is being written.
        """
        with self._lock:
            path = self._there(name)
            self._check_idle(name)
            path.unlink()

    def exported(self, name: str) -> bytes:
        """Its file.

        Raises:
            MissingError: there is none of that name.
        """
        return self._there(name).read_bytes()

    def imported(self, name: str, data: bytes) -> SessionFacts:
        """A session from such a file.

        Raises:
            ConflictError: there is one of that name, or as many as may be.
            InputError: it is no session, is damaged, or belongs to another model or cache.
        """
        with self._lock:
            path = self._free(name)
            temporary = self._folder / f"{_UNFINISHED}import"
            try:
                temporary.write_bytes(data)
                found = Snapshot.load(temporary)
            except InputError as error:
                raise InputError(str(error).replace(str(temporary), "the file")) from error
            finally:
                temporary.unlink(missing_ok=True)
            if found.kind != self._empty.kind:
                raise InputError(
                    "the file is of another model, cache or type of numbers; import it where the "
                    "same model is served with the same budget"
                )
            found.save(path)
        return self.facts(name)

    def lease(self, name: str) -> "Lease":
        """The right to go on with a session, which one text has at a time.

        Raises:
            MissingError: there is none of that name.
            ConflictError: another text has it.
        """
        with self._lock:
            path = self._there(name)
            self._check_idle(name)
            lease = Lease(self, name, path, read_header(path)["num_seen"])
            self._leased.add(name)
        return lease

    def release(self, name: str) -> None:
        """Give the right back; for `Lease`."""
        with self._lock:
            self._leased.discard(name)

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

    def _check_idle(self, name: str) -> None:
        if name in self._leased:
            raise ConflictError(f"the session {name!r} is being written; wait for its answer")


def _missing(name: str) -> MissingError:
    return MissingError(f"there is no session {name!r}; POST /v1/sessions makes one")


@final
class Lease:
    """The right to go on with a session."""

    def __init__(self, sessions: Sessions, name: str, path: Path, num_seen: int) -> None:
        self._sessions = sessions
        self._name = name
        self._path = path
        self.num_seen = num_seen
        """Tokens that it has read."""

    def load(self) -> Snapshot:
        """Where it stands.

        Raises:
            InputError: its file is damaged.
        """
        return Snapshot.load(self._path)

    def save(self, snapshot: Snapshot) -> None:
        """Where it stands now.

        Raises:
            InputError: it cannot be written; what was there is unchanged.
        """
        snapshot.save(self._path)

    def close(self) -> None:
        """Give it back; again and again does no harm, unless another has it by then."""
        self._sessions.release(self._name)
