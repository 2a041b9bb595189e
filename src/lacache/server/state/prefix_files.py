"""Known beginnings as files: so many bytes of them, and the least recently used go."""

import os
import queue
import re
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import final

from lacache.engine.snapshot import Snapshot
from lacache.engine.snapshot_file import sweep
from lacache.errors import InputError

PrefixKey = tuple[int, str]
"""Number of tokens, and the digest of them."""

_NAME = re.compile(r"(\d+)-([0-9a-f]{64})\.lacache")
_MOST_UNWRITTEN = 8


@final
class PrefixFiles:
    """Files of one kind of engine, in a folder of their own; written in the background.

    A file that is damaged is taken away when it is met. Where the disk is full or slow, some are
    not written: nothing but time is lost.

    Args:
        folder: made where it is missing.
        kind: of the engine; snapshots of others are passed over.
        most_bytes: of all files.
    """

    def __init__(self, folder: Path, kind: str, most_bytes: int) -> None:
        self._folder = folder
        self._kind = kind
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._sizes: OrderedDict[PrefixKey, int] = OrderedDict()
        self._find()
        self._unwritten: queue.Queue[tuple[PrefixKey, Snapshot] | None] = queue.Queue(
            _MOST_UNWRITTEN
        )
        self._writer = threading.Thread(
            target=self._write_all, name="lacache prefixes", daemon=True
        )
        self._writer.start()

    def keys(self) -> tuple[PrefixKey, ...]:
        """Of what is there."""
        with self._lock:
            return tuple(self._sizes)

    def load(self, key: PrefixKey) -> Snapshot | None:
        """What was kept, if it is still there and whole."""
        with self._lock:
            if key not in self._sizes:
                return None
            self._sizes.move_to_end(key)
        path = self._path(key)
        try:
            found = Snapshot.load(path)
        except InputError:
            found = None
        if found is None or found.kind != self._kind:
            self._drop(key)
            return None
        # It may be read where nothing can be written.
        with suppress(OSError):
            os.utime(path)
        return found

    def put(self, key: PrefixKey, snapshot: Snapshot) -> None:
        """Write it, soon."""
        try:
            self._unwritten.put_nowait((key, snapshot))
        except queue.Full:
            return

    def close(self) -> None:
        """Write what is left, and end."""
        self._unwritten.put(None)
        self._writer.join()

    def _find(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        sweep(self._folder)
        found = [(path.stat(), path) for path in self._folder.iterdir() if path.is_file()]
        for stat, path in sorted(found, key=lambda pair: pair[0].st_mtime):
            match = _NAME.fullmatch(path.name)
            if match:
                self._sizes[int(match[1]), match[2]] = stat.st_size
        self._shrink()

    def _write_all(self) -> None:
        while (item := self._unwritten.get()) is not None:
            # Whatever it is, the next may go well.
            with suppress(InputError, OSError, RuntimeError):
                self._write(*item)

    def _write(self, key: PrefixKey, snapshot: Snapshot) -> None:
        path = self._path(key)
        snapshot.save(path)
        size = path.stat().st_size
        with self._lock:
            self._sizes.pop(key, None)
            self._sizes[key] = size
        self._shrink()

    def _shrink(self) -> None:
        dropped = []
        with self._lock:
            num_bytes = sum(self._sizes.values())
            while num_bytes > self._most_bytes:
                key, size = self._sizes.popitem(last=False)
                num_bytes -= size
                dropped.append(key)
        for key in dropped:
            self._drop(key)

    def _drop(self, key: PrefixKey) -> None:
        with self._lock:
            self._sizes.pop(key, None)
        with suppress(OSError):
            self._path(key).unlink(missing_ok=True)

    def _path(self, key: PrefixKey) -> Path:
        return self._folder / f"{key[0]}-{key[1]}.lacache"
