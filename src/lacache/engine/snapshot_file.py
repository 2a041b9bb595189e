"""Snapshot files: tensors and a JSON header in the safetensors format, whole or not at all.

The header is one entry of the file's metadata. Its checksum is the SHA-256 of the whole file, with
zeros in its own place. The entry, `format`, `version`, `bytes` and `checksum` stay as they are in
every version, so that a file that is damaged can be told from one that is newer.
"""

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lacache.errors import InputError
from lacache.version import __version__

Header = dict[str, Any]
"""Only what JSON can hold."""

FORMAT = "lacache-session"
VERSION = 1
UNFINISHED = ".lacache-"
"""How the name of a file begins while it is written."""
_ENTRY = "lacache"
_NO_CHECKSUM = "0" * 64
_LONGEST = 100_000_000
"""Most bytes that the format allows between a file's first eight and its tensors."""
_RENEW = "read the text again and save another"


def write_snapshot(path: Path, header: Header, tensors: dict[str, Tensor]) -> None:
    """Write a snapshot; an older one in its place is replaced at the end, or stays as it was.

    Args:
        path: of the file; its folder must be there.
        header: what is to be known besides; format, version, bytes and checksum are added.
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


def read_header(path: Path) -> Header:
    """What a snapshot says of itself, whether its tensors are whole or not.

    Raises:
        InputError: the file cannot be read, or is no snapshot of a version that is understood.
    """
    with _reading(path) as file:
        header, _ = _read_head(path, file)
    _validate_version(path, header)
    return header


def read_snapshot(path: Path) -> tuple[Header, dict[str, Tensor]]:
    """Read a snapshot, and check that it is as it was written.

    Raises:
        InputError: the file cannot be read, is no snapshot, is cut off or damaged, or of a version
            that is not understood.
    """
    with _reading(path) as file:
        header, head = _read_head(path, file)
        data = head + file.read()
    checksum, num_bytes = header.get("checksum"), header.get("bytes")
    if isinstance(num_bytes, int) and len(data) < len(head) + num_bytes:
        raise _cut_off(path, len(data), len(head) + num_bytes)
    if not _is_whole(data, checksum):
        raise _damaged(path, "its checksum is another")
    _validate_version(path, header)
    try:
        return header, load(data)
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder that nobody writes to now."""
    for path in folder.glob(f"{UNFINISHED}*"):
        path.unlink(missing_ok=True)


def _read_head(path: Path, file: BinaryIO) -> tuple[Header, bytes]:
    """The header, and all bytes up to the tensors."""
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > _LONGEST:
        raise InputError(f"{path} is no safetensors file; give a snapshot of a session")
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
            f"{path} is a safetensors file, but holds no session; give one that was written by "
            "Session.save"
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
    """Whether a file's bytes have the checksum that stands among them."""
    if not isinstance(checksum, str) or not checksum.isascii():
        return False
    blank = _with_checksum(data, checksum, _NO_CHECKSUM)
    return hashlib.sha256(blank).hexdigest() == checksum


def _with_checksum(data: bytes, old: str, new: str) -> bytes:
    return data.replace(old.encode(), new.encode(), 1)


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot read {path}: {reason}; give a snapshot of a session") from error


def _write(path: Path, data: bytes) -> None:
    path = Path(os.path.realpath(path))  # a link goes on leading to what is written
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
            f"cannot write {path}: {reason}; what was there is unchanged, so try another folder"
        ) from error
    with suppress(OSError):  # not every system can do this to a folder
        _sync(path.parent)


def _private(path: str, flags: int) -> int:
    """What the model keeps of a text is nobody else's."""
    return os.open(path, flags, 0o600)


def _sync(folder: Path) -> None:
    """Make a new name last, as its file does already."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
