"""Split a GGUF file into smaller ones, each of which transformers can read by itself."""

import contextlib
import functools
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, final

import numpy as np

PART_WEIGHTS = 2**28
"""Numbers of a part, 512 MiB in bfloat16."""

_BLOCK = re.compile(r".*?\.\d+\.")
_COPIED_BYTES = 2**24
_UNPACKED_BYTES = 2**20


@final
@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF file, by its place there.

    Args:
        name: the tensor's name.
        num_weights: how many numbers it has.
        start: its first byte in the file.
        num_bytes: its bytes.
        entry: its entry in the file's table of tensors, without the place.
    """

    name: str
    num_weights: int
    start: int
    num_bytes: int
    entry: bytes


@final
@dataclass(frozen=True)
class GgufParts:
    """A GGUF file that is read in parts.

    gguf's own reader is not kept, since it holds a vocabulary as a gigabyte of small arrays.

    Args:
        path: the file.
        start: the file's first bytes: a mark and its version.
        fields: metadata without the vocabulary, which takes seconds to read; no weight needs it.
        alignment: of tensors, in bytes.
        tensors: all of them.
    """

    path: Path
    start: bytes
    fields: tuple[bytes, ...]
    alignment: int
    tensors: tuple[GgufTensor, ...]

    @classmethod
    def from_reader(cls, path: Path, reader: Any) -> Self:
        """Keep what is needed of gguf's reader of a file."""
        fields = [
            _content(reader, field)
            for name, field in reader.fields.items()
            if not name.startswith(("GGUF.", "tokenizer."))
        ]
        tensors = [
            GgufTensor(
                tensor.name,
                int(tensor.n_elements),
                int(tensor.data_offset),
                int(tensor.n_bytes),
                _content(reader, tensor.field)[:-8],
            )
            for tensor in reader.tensors
        ]
        start = bytes(reader.data[:8])
        return cls(path, start, tuple(fields), int(reader.alignment), tuple(tensors))

    def split(self, limit: int, *, tied: bool) -> list[list[GgufTensor]]:
        """Group the tensors in parts of at most `limit` numbers where possible.

        Tensors of one block (`blk.3.`) stay together, as transformers may merge some of them.
        The others, mostly large, come first, when no packed weights take memory yet.

        Args:
            limit: numbers of a part.
            tied: whether the model ties weights, so that the others stay together too.
        """
        outside: dict[str, list[GgufTensor]] = {}
        blocks: dict[str, list[GgufTensor]] = {}
        for tensor in self.tensors:
            if match := _BLOCK.match(tensor.name):
                blocks.setdefault(match.group(), []).append(tensor)
            else:
                # A weight and its bias have one name.
                name = "" if tied else tensor.name.rpartition(".")[0]
                outside.setdefault(name, []).append(tensor)
        parts: list[list[GgufTensor]] = [[]]
        for block in [*outside.values(), *blocks.values()]:
            if parts[-1] and sum(tensor.num_weights for tensor in [*parts[-1], *block]) > limit:
                parts.append([])
            parts[-1] += block
        return parts

    def write(self, tensors: Sequence[GgufTensor], path: Path) -> None:
        """Write a GGUF file that has some of the tensors, and the metadata."""
        header = self.start + struct.pack("<QQ", len(tensors), len(self.fields))
        header += b"".join(self.fields)
        place = 0
        for tensor in tensors:
            header += tensor.entry + struct.pack("<Q", place)
            place += tensor.num_bytes + self._padding(tensor.num_bytes)
        with self.path.open("rb") as whole, path.open("wb") as part:
            part.write(header + bytes(self._padding(len(header))))
            for tensor in tensors:
                whole.seek(tensor.start)
                for length in _lengths(tensor.num_bytes):
                    part.write(whole.read(length))
                part.write(bytes(self._padding(tensor.num_bytes)))

    def _padding(self, length: int) -> int:
        return -length % self.alignment


@contextlib.contextmanager
def frugal_gguf() -> Iterator[None]:
    """Let transformers unpack a matrix in place, and make each map of names once.

    gguf unpacks a matrix into small arrays, which it joins then. transformers makes the map of
    names, half of a small part's time, for each module.
    """
    import gguf

    dequantize, names = gguf.dequantize, gguf.get_tensor_name_map
    gguf.dequantize = functools.partial(_dequantize, dequantize)
    gguf.get_tensor_name_map = functools.cache(names)
    try:
        yield
    finally:
        gguf.dequantize, gguf.get_tensor_name_map = dequantize, names


def _dequantize(dequantize: Any, content: Any, kind: Any) -> Any:
    """Unpack rows a few at a time into one array."""
    step = max(1, _UNPACKED_BYTES // max(1, content[:1].nbytes))
    if len(content) <= step:
        return dequantize(content, kind)
    first = dequantize(content[:step], kind)
    numbers = np.empty((len(content), *first.shape[1:]), first.dtype)
    for start in range(0, len(content), step):
        numbers[start : start + step] = dequantize(content[start : start + step], kind)
    return numbers


def _content(reader: Any, field: Any) -> bytes:
    """Return the bytes of a field of a GGUF file."""
    length = sum(int(part.nbytes) for part in field.parts)
    return bytes(reader.data[field.offset : field.offset + length])


def _lengths(total: int) -> Iterator[int]:
    for start in range(0, total, _COPIED_BYTES):
        yield min(_COPIED_BYTES, total - start)
