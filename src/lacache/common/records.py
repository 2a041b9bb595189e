"""Write and read records of measurements as JSON, the only source of tables and plots."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

from lacache.common.files import parse_json, refuse_device
from lacache.errors import InputError
from lacache.version import __version__

try:
    import fcntl
except ImportError:  # on Windows, where processes must not share a file of records
    fcntl = None  # type: ignore[assignment]

Record = dict[str, Any]
"""JSON values: dicts with string keys, lists, strings, numbers, booleans, None."""


def environment() -> Record:
    """Return what a measurement depends on besides its own settings.

    Versions of lacache, Python and the packages that compute, the git commit where lacache runs
    from a checkout ("-dirty" if tracked files have changed), the processor, torch's threads if
    torch is in use, and the time in UTC.
    """
    torch = sys.modules.get("torch")
    return {
        "lacache": __version__,
        "python": platform.python_version(),
        **{name: _installed(name) for name in ("torch", "transformers")},
        "commit": _commit(Path(__file__).resolve()),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": None if torch is None else torch.get_num_threads(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` when the block ends without an error.

    If the block ends in any error, Ctrl-C included, `path` is left as it was. Missing folders are
    created.

    Raises:
        InputError: the folder or the file cannot be written.
    """
    # The ending stays last, since some writers choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write {path}: {reason}; try another folder") from error


def validate_writable(folder: Path) -> None:
    """Try whether files can be written in `folder`, before any long work, and leave no trace.

    A missing folder counts, as it is created with the first file.

    Raises:
        InputError: it cannot be created or written.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
        for path in new:
            # Another process may have put something into it.
            with suppress(OSError):
                path.rmdir()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write in {folder}: {reason}; try another folder") from error


def validate_replaceable(path: Path) -> None:
    """Try whether a file can be written at `path`, before any long work.

    Raises:
        InputError: its folder cannot be written, or it is a folder itself.
    """
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; give a file in it")
    validate_writable(path.parent)


def write_record(path: Path, record: Record) -> None:
    """Write `record` as JSON, one line for each of its keys, whole or not at all.

    Raises:
        InputError: the file cannot be written.
        ValueError: a number is not finite, which JSON cannot hold.
    """
    lines = [f" {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in record.items()]
    with replacing(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def read_record(path: Path) -> Record:
    """Read the record in a JSON file.

    Raises:
        InputError: the file cannot be read or is not a record.
    """
    try:
        record = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; give the path of a record"
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); measure again to replace it") from error
    if not isinstance(record, dict):
        raise InputError(f"{path} holds a {type(record).__name__}; a record is a JSON object")
    return record


def append_record(path: Path, record: Record) -> None:
    """Add `record` to a file of JSON lines as one whole line; the file and folders are created.

    A last line that was cut off in the middle (by a full disk, a crash) is replaced. Processes that
    add to one file wait for each other.

    Raises:
        InputError: the file cannot be written, or is not a file of JSON lines.
        ValueError: a number is not finite, which JSON cannot hold.
    """
    line = json.dumps(record, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            # Else a line that another process is about to write looks as if it was cut off.
            _lock(file)
            tail = _last_line(file)
            if _is_record(tail):
                line = f"\n{line}"
            elif tail and not tail.lstrip().startswith(b"{"):
                raise InputError(
                    f"{path} is not a file of records, so nothing was added to it; try another file"
                )
            else:
                file.truncate(file.seek(0, os.SEEK_END) - len(tail))
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write {path}: {reason}; try another file") from error


def read_records(path: Path) -> list[Record]:
    """Read the records in a file of JSON lines; return none if there is no such file.

    A last line that was cut off in the middle is left out.

    Raises:
        InputError: the file cannot be read, or a line is not a record.
    """
    refuse_device(path)
    try:
        *lines, last = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give a .jsonl file") from error
    if _is_record(last):
        lines.append(last)
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = parse_json(line)
        except ValueError as error:
            raise InputError(
                f"line {number} of {path} is not JSON ({error}); give another file, or mend that "
                "line"
            ) from error
        if not isinstance(record, dict):
            raise InputError(
                f"line {number} of {path} holds a {type(record).__name__}; a record is a JSON "
                "object, so give another file, or mend that line"
            )
        records.append(record)
    return records


def _lock(file: BinaryIO) -> None:
    """Wait for other processes that append; some file systems have no such locks."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)


def _last_line(file: BinaryIO) -> bytes:
    """Return the bytes after the last line feed: nothing, or a whole or partial record."""
    end = file.seek(0, os.SEEK_END)
    tail = b""
    while len(tail) < end and b"\n" not in tail:
        size = min(end, max(4096, 2 * len(tail)))
        file.seek(end - size)
        tail = file.read(size)
    return tail.rpartition(b"\n")[2]


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(parse_json(line), dict)
    except ValueError:
        return False


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit(file: Path) -> str | None:
    """Return the commit of the checkout that `file` belongs to, or None."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=file.parent, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        # An installed package may lie inside a checkout of something else.
        git("ls-files", "--error-unmatch", file.name)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
