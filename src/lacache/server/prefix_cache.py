"""The prefix cache: snapshots of prompts and replies, found by their tokens."""

import os
import queue
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from lacache.engine.sampler import SamplerState
from lacache.engine.sequence import Sequence
from lacache.engine.snapshot import Snapshot
from lacache.engine.snapshot_file import sweep
from lacache.errors import InputError
from lacache.server.completion import StateStore

PrefixKey = tuple[int, str]
"""Number of tokens, and their digest."""

_NAME = re.compile(r"(\d+)-([0-9a-f]{64})\.lacache")
_MAX_UNWRITTEN = 8


@final
class PrefixCache(StateStore):
    """Snapshots in memory and in files; the least recently used are removed. For one thread.

    What a cache holds is a function of the tokens alone, so a sequence that continues from a
    snapshot of its prefix equals one that prefills the prefix again.

    Args:
        max_bytes: most bytes in memory; 0 turns the cache off, its files too.
        files: snapshots on disk, or None.
    """

    def __init__(self, max_bytes: int, files: "PrefixFiles | None" = None) -> None:
        self._max_bytes = max_bytes
        self._files = files
        self._snapshots: OrderedDict[PrefixKey, Snapshot] = OrderedDict()
        self._num_bytes = 0

    @property
    def num_bytes(self) -> int:
        """Bytes in memory."""
        return self._num_bytes

    def find_snapshot(self, prompt: Tensor) -> tuple[Snapshot | None, int]:
        """Return the snapshot of the longest known prefix of a prompt, and its length."""
        found = self.longest(prompt)
        return found, 0 if found is None else found.num_seen

    def on_prompt_done(self, prompt: Tensor, snapshot: Callable[[], Snapshot]) -> None:
        """Store the prompt, which may come again, or continue after another reply."""
        if self._max_bytes:
            self.put(prompt, snapshot())

    def on_end(self, tokens: Tensor, sequence: Sequence, snapshot: Callable[[], Snapshot]) -> None:
        """Store prompt and completion, where the next prompt of a chat most often continues."""
        if self._max_bytes:
            sequence.drop_last()
            found = snapshot()
            self.put(tokens[: found.num_seen], found)

    def release(self) -> None:
        """Do nothing, since requests never change a stored snapshot."""

    def longest(self, tokens: Tensor) -> Snapshot | None:
        """Return the snapshot of the longest known prefix from which a prompt can continue.

        Args:
            tokens: of the prompt [Q], int64 on the CPU.
        """
        on_disk = self._files.keys() if self._files else ()
        lengths = {length for length, _ in (*self._snapshots, *on_disk)}
        for key in reversed(prefix_keys(tokens, lengths)):
            found = self._get(key)
            # The whole prompt is a useful prefix only with the logits of the next token.
            if found is not None and (key[0] < len(tokens) or found.logits is not None):
                return found
        return None

    def put(self, tokens: Tensor, snapshot: Snapshot) -> None:
        """Store the snapshot of a sequence that consists of exactly these tokens [Q]."""
        (key,) = prefix_keys(tokens, {len(tokens)})
        # A repetition penalty concerns these tokens, and no others that were sampled meanwhile.
        seen = torch.unique(tokens)
        snapshot = replace(snapshot, sampler=SamplerState(generator=None, seen=seen))
        old = self._snapshots.get(key)
        if old is not None and (old.logits is not None or snapshot.logits is None):
            # The same state, with as many logits.
            self._snapshots.move_to_end(key)
            return
        self._hold(key, snapshot)
        if self._files is not None:
            self._files.put(key, snapshot)

    def close(self) -> None:
        """Wait until all files are written."""
        if self._files is not None:
            self._files.close()

    def _get(self, key: PrefixKey) -> Snapshot | None:
        if key in self._snapshots:
            self._snapshots.move_to_end(key)
            return self._snapshots[key]
        found = self._files.load(key) if self._files else None
        if found is not None:
            self._hold(key, found)
        return found

    def _hold(self, key: PrefixKey, snapshot: Snapshot) -> None:
        old = self._snapshots.pop(key, None)
        if old is not None:
            self._num_bytes -= old.num_bytes
        self._snapshots[key] = snapshot
        self._num_bytes += snapshot.num_bytes
        while self._num_bytes > self._max_bytes:
            self._num_bytes -= self._snapshots.popitem(last=False)[1].num_bytes


@final
class PrefixFiles:
    """Snapshot files of one kind of engine, in a folder of their own; written in the background.

    A damaged file is removed when it is found. If the disk is full or slow, some snapshots are not
    written, which costs only time.

    Args:
        folder: created if missing.
        kind: `Engine.kind`; snapshots of other kinds are removed.
        max_bytes: most bytes of all files.
    """

    def __init__(self, folder: Path, kind: str, max_bytes: int) -> None:
        self._folder = folder
        self._kind = kind
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._sizes: OrderedDict[PrefixKey, int] = OrderedDict()
        self._find()
        self._unwritten: queue.Queue[tuple[PrefixKey, Snapshot] | None] = queue.Queue(
            _MAX_UNWRITTEN
        )
        self._writer = threading.Thread(
            target=self._write_all, name="lacache prefixes", daemon=True
        )
        self._writer.start()

    def keys(self) -> tuple[PrefixKey, ...]:
        """Return the keys of all files, the least recently used first."""
        with self._lock:
            return tuple(self._sizes)

    def load(self, key: PrefixKey) -> Snapshot | None:
        """Return a snapshot, if its file still exists and is whole."""
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
            self._remove(key)
            return None
        # The folder may be read-only.
        with suppress(OSError):
            os.utime(path)
        return found

    def put(self, key: PrefixKey, snapshot: Snapshot) -> None:
        """Write a snapshot in the background, unless too many are waiting."""
        try:
            self._unwritten.put_nowait((key, snapshot))
        except queue.Full:
            return

    def close(self) -> None:
        """Write what is waiting, and end the thread."""
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
            # Whatever fails here, the next file may succeed.
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
        oldest = []
        with self._lock:
            num_bytes = sum(self._sizes.values())
            while num_bytes > self._max_bytes:
                key, size = self._sizes.popitem(last=False)
                num_bytes -= size
                oldest.append(key)
        for key in oldest:
            self._remove(key)

    def _remove(self, key: PrefixKey) -> None:
        with self._lock:
            self._sizes.pop(key, None)
        with suppress(OSError):
            self._path(key).unlink(missing_ok=True)

    def _path(self, key: PrefixKey) -> Path:
        return self._folder / f"{key[0]}-{key[1]}.lacache"


def prefix_keys(tokens: Tensor, lengths: Collection[int]) -> list[PrefixKey]:
    """Return the keys of the prefixes of tokens [Q] of the given lengths, the shortest first."""
    data = tokens.numpy().tobytes()
    digest, done, keys = sha256(), 0, []
    for length in sorted(lengths):
        if length > len(tokens):
            break
        digest.update(data[8 * done : 8 * length])
        done = length
        keys.append((length, digest.hexdigest()))
    return keys
