"""Snapshot files: tensors and a JSON header in the safetensors format, whole or not at all.

The header is one entry of the file's metadata. Its checksum is the SHA-256 of the whole file, with
zeros in the place of the checksum. The entry, `format`, `version`, `bytes` and `checksum` are the
same in every version, so that a damaged file differs from a newer one.
"""

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lacache.errors import InputError
from lacache.version import __version__

Header = dict[str, Any]
"""A JSON object."""

FORMAT = "lacache-session"
VERSION = 1
UNFINISHED = ".lacache-"
"""Prefix of the names of files that are being written."""
_ENTRY = "lacache"
_NO_CHECKSUM = "0" * 64
_LONGEST = 100_000_000
"""Most bytes that the format allows between a file's first eight and its tensors."""
_RENEW = "prefill the session again and save another"


def write_snapshot(path: Path, header: Header, tensors: dict[str, Tensor]) -> None:
    """Write a snapshot; an existing file is replaced at the end, or unchanged on an error.

    Args:
        path: of the file, in an existing folder.
        header: the snapshot's own entries; format, version, bytes and checksum are added.
        tensors: contiguous, on the CPU.

    Raises:
        InputError: the file cannot be written.
    """
    header = {
        "format": FORMAT,
        "version": VERSION,
        "lacache": __version__,
        **header,
        "bytes": sum(tensor.nbytes for tensor in tensors.values()),
        "checksum": _NO_CHECKSUM,
    }
    blank = save(tensors, {_ENTRY: json.dumps(header, allow_nan=False)})
    checksum = hashlib.sha256(blank).hexdigest()
    _write(path, _with_checksum(blank, _NO_CHECKSUM, checksum))


def read_header(path: str | PathLike[str]) -> Header:
    """Return the header of a snapshot, without a check of its tensors.

    Raises:
        InputError: the file cannot be read, or is no snapshot of a supported version.
    """
    path = Path(path)
    with _open(path) as file:
        header, _ = _read_head(path, file)
    _validate_version(path, header)
    return header


def read_snapshot(path: Path) -> tuple[Header, dict[str, Tensor]]:
    """Read a snapshot, and verify its checksum.

    Raises:
        InputError: the file cannot be read, is no snapshot, is cut off or damaged, or of an
            unsupported version.
    """
    with _open(path) as file:
        header, head = _read_head(path, file)
        data = head + file.read()
    checksum, num_bytes = header.get("checksum"), header.get("bytes")
    if isinstance(num_bytes, int) and len(data) < len(head) + num_bytes:
        raise _cut_off(path, len(data), len(head) + num_bytes)
    if not _is_whole(data, checksum):
        raise _damaged(path, "its checksum differs")
    _validate_version(path, header)
    try:
        return header, load(data)
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error


def sweep(folder: Path) -> None:
    """Remove the unfinished files of killed processes from a folder without writers."""
    for path in folder.glob(f"{UNFINISHED}*"):
        path.unlink(missing_ok=True)


def _read_head(path: Path, file: BinaryIO) -> tuple[Header, bytes]:
    """Return the header, and all bytes before the tensors."""
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > _LONGEST:
        raise InputError(f"{path} is not a safetensors file; give a snapshot of a session")
    text = file.read(length)
    if len(text) < length:
        raise _cut_off(path, 8 + len(text), 8 + length)
    try:
        header = json.loads(json.loads(text)["__metadata__"][_ENTRY])
        is_ours = header["format"] == FORMAT
    except (KeyError, TypeError):
        is_ours = False
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if not is_ours:
        raise InputError(
            f"{path} is a safetensors file without a session; give a file that Session.save wrote"
        )
    return header, start + text


def _validate_version(path: Path, header: Header) -> None:
    version = header.get("version")
    if version != VERSION:
        raise InputError(
            f"{path} is of version {version} of the format, written by lacache "
            f"{header.get('lacache')}, and lacache {__version__} reads version {VERSION}; use that "
            f"lacache, or {_RENEW}"
        )


def _cut_off(path: Path, found: int, needed: int) -> InputError:
    return InputError(
        f"{path} is cut off: it has {found:,} bytes and should have {needed:,} or more; take "
        f"another copy, or {_RENEW}"
    )


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"{path} is damaged ({reason}); take another copy, or {_RENEW}")


def _is_whole(data: bytes, checksum: object) -> bool:
    """Whether the bytes of a file have the checksum that they contain."""
    if not isinstance(checksum, str) or not checksum.isascii():
        return False
    blank = _with_checksum(data, checksum, _NO_CHECKSUM)
    return hashlib.sha256(blank).hexdigest() == checksum


def _with_checksum(data: bytes, old: str, new: str) -> bytes:
    return data.replace(old.encode(), new.encode(), 1)


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot read {path}: {reason}; give a snapshot of a session") from error


def _write(path: Path, data: bytes) -> None:
    path = Path(os.path.realpath(path))  # a link stays a link
    temporary = path.parent / f"{UNFINISHED}{secrets.token_hex(8)}"
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise OSError(errno.EINVAL, "it is a device or a pipe")
        try:
            with open(temporary, "xb", opener=_private) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"cannot write {path}: {reason}; an existing file is unchanged; try another folder"
        ) from error
    with suppress(OSError):  # not every system can do this to a folder
        _sync(path.parent)


def _private(path: str, flags: int) -> int:
    """Open a file that other users cannot read: keys and values reveal the prompt."""
    return os.open(path, flags, 0o600)


def _sync(folder: Path) -> None:
    """Make a new directory entry durable, as the file's contents are already."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
