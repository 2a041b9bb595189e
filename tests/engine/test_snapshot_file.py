"""Snapshot files are whole or refused, and written whole or not at all."""

import errno
import hashlib
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from lacache.engine import snapshot_file
from lacache.engine.snapshot_file import read_header, read_snapshot, write_snapshot
from lacache.errors import InputError
from lacache.version import __version__

HEADER = {"model": "aé", "plan": {"capacity": 7}, "last": None}
TENSORS = {
    "bytes": torch.arange(9, dtype=torch.uint8),
    "empty": torch.empty(2, 0, 3),
    "half": torch.linspace(-1, 1, 6, dtype=torch.bfloat16).view(2, 3),
    "long": torch.tensor([-1, 2**62]),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "text.lacache"
    write_snapshot(path, HEADER, TENSORS)
    return path


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )


def test_what_is_written_is_read(path: Path) -> None:
    header, tensors = read_snapshot(path)
    assert same(tensors, TENSORS)
    assert header == read_header(path)
    added = {key: value for key, value in header.items() if key not in HEADER}
    assert header == HEADER | added
    assert re.fullmatch("[0-9a-f]{64}", added.pop("checksum"))
    assert added == {
        "format": "lacache-session",
        "version": 1,
        "lacache": __version__,
        "bytes": 9 + 12 + 16,
    }
    assert os.listdir(path.parent) == [path.name]


def test_any_changed_byte_is_found(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    other = tmp_path / "other"
    for place in range(len(whole)):
        # Such that a space becomes a tab, and a letter one of the other case.
        for change in (0x29, 0x20):
            data = bytearray(whole)
            data[place] ^= change
            other.write_bytes(data)
            with pytest.raises(InputError):
                read_snapshot(other)


def test_a_changed_byte_of_a_tensor_is_called_damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"is damaged \(its checksum differs\); take another"):
        read_snapshot(path)
    assert read_header(path)["model"] == HEADER["model"]


def test_any_cut_is_found(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        message = f"it has {length:,} bytes and should"
        if length < 8:
            message = "is not a safetensors file"
        with pytest.raises(InputError, match=message):
            read_snapshot(path)


def test_what_is_added_is_found(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(InputError, match="is damaged"):
        read_snapshot(path)


def file_of(metadata: dict[str, str] | None) -> bytes:
    data: bytes = save({"a": torch.ones(2)}, metadata)
    return data


def header_file(header: Any) -> bytes:
    return file_of({"lacache": json.dumps(header)})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a safetensors file; give a snapshot"),
        (b"Once upon a time", "is not a safetensors file; give a snapshot"),
        (file_of(None), "without a session; give a file"),
        (file_of({"format": "pt"}), "without a session; give a file"),
        (header_file([]), "without a session; give a file"),
        (header_file("format"), "without a session; give a file"),
        (header_file({"format": "other"}), "without a session; give a file"),
        (file_of({"lacache": "{"}), "is damaged"),
        (b"\2\0\0\0\0\0\0\0[]", "without a session; give a file"),
        (b"\2\0\0\0\0\0\0\0{{", "is damaged"),
        (b"\2\0\0\0\0\0\0\0\xff\xff", "is damaged"),
        (header_file({"format": "lacache-session"}), "is damaged"),
        (header_file({"format": "lacache-session", "checksum": "é" * 64}), "is damaged"),
        (header_file({"format": "lacache-session", "checksum": "a" * 64}), "is damaged"),
    ],
)
def test_other_files_are_refused(path: Path, data: bytes, message: str) -> None:
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"{path.name}.*{message}"):
        read_snapshot(path)


def test_weights_are_refused_before_they_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(1000)}, path)
    with path.open("ab") as file:
        file.truncate(1 << 42)  # more than there is memory for
    with pytest.raises(InputError, match="without a session"):
        read_snapshot(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*missing: No such file.*; give a snapshot"):
        read_snapshot(tmp_path / "missing")
    with pytest.raises(InputError, match=r"cannot read .*: Is a directory; give a snapshot"):
        read_header(tmp_path)


def test_other_versions_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_file, "VERSION", 2)
    monkeypatch.setattr(snapshot_file, "__version__", "9.8")
    write_snapshot(path, HEADER, TENSORS)
    monkeypatch.undo()
    message = f"is of version 2 .* lacache 9.8, and lacache {__version__} reads version 1; use that"
    for read in (read_header, read_snapshot):
        with pytest.raises(InputError, match=message):
            read(path)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(InputError, match="is damaged"):
        read_snapshot(path)


def test_what_was_made_to_look_whole_is_refused(path: Path) -> None:
    """By somebody who knows how; the library that reads tensors finds the rest."""
    whole = path.read_bytes()
    checksum = read_header(path)["checksum"].encode()
    blank = whole.replace(checksum, b"0" * 64).replace(b'"shape":[2,3]', b'"shape":[2,4]')
    made = hashlib.sha256(blank).hexdigest().encode()
    path.write_bytes(blank.replace(b"0" * 64, made))
    with pytest.raises(InputError, match=r"is damaged \((?!its checksum)"):
        read_snapshot(path)


@contextmanager
def nothing_changes(path: Path) -> Iterator[None]:
    before = path.read_bytes()
    names = sorted(os.listdir(path.parent))
    yield
    assert path.read_bytes() == before
    assert sorted(os.listdir(path.parent)) == names


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), OSError()])
def test_a_step_that_fails_changes_nothing(
    path: Path, step: str, error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(os, step, fail)
    message = f"cannot write .*: {error.strerror or ''}; an existing file is unchanged"
    with nothing_changes(path), pytest.raises(InputError, match=message):
        write_snapshot(path, {}, {})


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_interrupt_changes_nothing(
    path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, interrupt)
    with nothing_changes(path), pytest.raises(KeyboardInterrupt):
        write_snapshot(path, {}, {})


def test_a_disk_that_gets_full_changes_nothing(path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    tensors = {"large": torch.ones(100_000)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with nothing_changes(path), pytest.raises(InputError, match=r"cannot write .*: File too"):
            write_snapshot(path, {}, tensors)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    write_snapshot(path, {}, tensors)
    assert same(read_snapshot(path)[1], tensors)


def test_places_where_nothing_can_be_written(path: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for place, reason in (
        (tmp_path / "missing" / "text", "No such file or directory"),
        (path / "text", "Not a directory"),
        (tmp_path / "folder", "Is a directory"),
        (Path(), "busy|Is a directory|Invalid argument"),
        (tmp_path / ("long" * 100), "File name too long"),
    ):
        message = f"cannot write .*({reason}).*; an existing file is unchanged; try another"
        with nothing_changes(path), pytest.raises(InputError, match=message):
            write_snapshot(place, HEADER, TENSORS)
    assert os.listdir(tmp_path / "folder") == []


def test_a_link_goes_on_leading_to_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("before")
    (tmp_path / "link").symlink_to("real")
    write_snapshot(tmp_path / "link", HEADER, TENSORS)
    assert (tmp_path / "link").is_symlink()
    assert same(read_snapshot(tmp_path / "real")[1], TENSORS)


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"it is a device or a pipe; an existing file is"):
        write_snapshot(tmp_path / "pipe", HEADER, TENSORS)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(path: Path) -> None:
    path.parent.chmod(0o500)
    try:
        with nothing_changes(path), pytest.raises(InputError, match="Permission denied; what was"):
            write_snapshot(path, HEADER, TENSORS)
    finally:
        path.parent.chmod(0o700)


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from lacache.engine.snapshot_file import read_snapshot, write_snapshot

path = Path(sys.argv[1])
torch.set_num_threads(1)
first = 0
for _ in range(12):
    child = os.fork()
    if child == 0:
        for number in range(first, 1_000_000):
            tensors = {"numbers": torch.full((100_000,), number)}
            write_snapshot(path, {"number": number}, tensors)
    time.sleep(random.uniform(0.0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if path.exists():
        header, tensors = read_snapshot(path)
        first = header["number"]
        assert torch.equal(tensors["numbers"], torch.full((100_000,), first))
print(first)
"""


@pytest.mark.slow
def test_a_kill_at_any_time_leaves_a_whole_snapshot(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "text")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5
