"""Where texts stood that were read before, by their tokens."""

from array import array
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import final

import torch

from lacache.engine.sampler import SamplerState
from lacache.engine.snapshot import Snapshot
from lacache.server.state.prefix_files import PrefixFiles, PrefixKey


@final
class Prefixes:
    """Known beginnings, in memory up to a number of bytes and in files; the least recently used go.

    What a cache holds is a function of the tokens alone, so who goes on from a known beginning gets
    what reading it again would give.

    Args:
        most_bytes: in memory; 0 keeps nothing, in files neither.
        files: on disk, or None.
    """

    def __init__(self, most_bytes: int, files: PrefixFiles | None = None) -> None:
        self._most_bytes = most_bytes
        self._files = files
        self._held: OrderedDict[PrefixKey, Snapshot] = OrderedDict()
        self._num_bytes = 0

    @property
    def is_on(self) -> bool:
        """Whether anything is kept."""
        return self._most_bytes > 0

    @property
    def num_bytes(self) -> int:
        """In memory."""
        return self._num_bytes

    def longest(self, tokens: Sequence[int]) -> Snapshot | None:
        """The longest known beginning of a prompt from which it can go on."""
        on_disk = self._files.keys() if self._files else ()
        lengths = {length for length, _ in (*self._held, *on_disk)}
        for key in reversed(prefix_keys(tokens, lengths)):
            found = self._take(key)
            # At its very end it can only go on with what the model expects next.
            if found is not None and (key[0] < len(tokens) or found.logits is not None):
                return found
        return None

    def put(self, tokens: Sequence[int], snapshot: Snapshot) -> None:
        """Keep where a text stands that consists of these tokens and no others."""
        (key,) = prefix_keys(tokens, {len(tokens)})
        # A penalty heeds the tokens of this text, and no others that were chosen on the way.
        seen = torch.unique(torch.tensor(tokens, dtype=torch.int64))
        snapshot = replace(snapshot, sampler=SamplerState(generator=None, seen=seen))
        old = self._held.get(key)
        if old is not None and (old.logits is not None or snapshot.logits is None):
            # The same state, of which as much is known.
            self._held.move_to_end(key)
            return
        self._hold(key, snapshot)
        if self._files is not None:
            self._files.put(key, snapshot)

    def close(self) -> None:
        """Finish writing files."""
        if self._files is not None:
            self._files.close()

    def _take(self, key: PrefixKey) -> Snapshot | None:
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        found = self._files.load(key) if self._files else None
        if found is not None:
            self._hold(key, found)
        return found

    def _hold(self, key: PrefixKey, snapshot: Snapshot) -> None:
        old = self._held.pop(key, None)
        if old is not None:
            self._num_bytes -= old.num_bytes
        self._held[key] = snapshot
        self._num_bytes += snapshot.num_bytes
        while self._num_bytes > self._most_bytes:
            self._num_bytes -= self._held.popitem(last=False)[1].num_bytes


def prefix_keys(tokens: Sequence[int], lengths: Collection[int]) -> list[PrefixKey]:
    """Length and digest of the beginnings that have one of the lengths, the shortest first."""
    data = memoryview(array("q", tokens)).cast("B")
    digest, done, keys = sha256(), 0, []
    for length in sorted(lengths):
        if length > len(tokens):
            break
        digest.update(data[8 * done : 8 * length])
        done = length
        keys.append((length, digest.hexdigest()))
    return keys
