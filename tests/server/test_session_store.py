"""Named sessions: whole at any moment, in their folder, one writer at a time."""

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from lacache import Engine
from lacache.engine import snapshot_file
from lacache.engine.snapshot import Snapshot
from lacache.engine.snapshot_file import read_snapshot, write_snapshot
from lacache.errors import InputError
from lacache.server.errors import ConflictError, NotFoundError, StorageError
from lacache.server.session_store import SessionStore
from lacache.server.settings import StorageSettings
from tests.engine.tiny import tiny_llama
from tests.server.serving import CAPACITY, NAME, POLICY, new_engine, service


@pytest.fixture(scope="module")
def engine() -> Engine:
    return new_engine()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sessions"


def sessions_in(folder: Path, engine: Engine, most: int = 3) -> SessionStore:
    with engine.open() as session:
        empty = session.snapshot()
    return SessionStore(
        folder, empty, engine.validate_snapshot, max_sessions=most, file_bytes=10**6
    )


def write(sessions: SessionStore, engine: Engine, name: str, tokens: list[int]) -> None:
    lease = sessions.lease(name)
    with engine.resume(lease.load()) as session:
        list(session.generate(tokens, max_new_tokens=0))
        lease.save(session.snapshot())
    lease.release()


def names(sessions: SessionStore) -> list[tuple[str, int]]:
    return [(info.name, info.num_seen) for info in sessions.all()]


def test_a_session_from_creation_to_deletion(folder: Path, engine: Engine) -> None:
    sessions = sessions_in(folder, engine)
    assert sessions.all() == []
    assert sessions.create("b").num_seen == 0
    write(sessions, engine, "b", [5, 6])
    assert sessions.fork("b", "a").num_seen == 2
    write(sessions, engine, "b", [7])
    assert names(sessions) == [("a", 2), ("b", 3)]
    again = sessions_in(folder, engine)
    assert names(again) == [("a", 2), ("b", 3)]
    data = again.export_file("b")
    assert again.info("b").num_bytes == len(data) < again.file_bytes
    again.delete("b")
    assert names(again) == [("a", 2)]
    assert again.import_file("c", data).num_seen == 3
    write(again, engine, "c", [8])
    assert names(again) == [("a", 2), ("c", 4)]


def test_what_is_not_there(folder: Path, engine: Engine) -> None:
    sessions = sessions_in(folder, engine)
    for call in (sessions.info, sessions.delete, sessions.export_file, sessions.lease):
        with pytest.raises(NotFoundError, match="no session 'a'"):
            call("a")
    with pytest.raises(NotFoundError, match="no session 'a'"):
        sessions.fork("a", "b")


def test_what_is_there_already(folder: Path, engine: Engine) -> None:
    sessions = sessions_in(folder, engine)
    sessions.create("a")
    sessions.create("b")
    with pytest.raises(ConflictError, match="a session 'a' exists already"):
        sessions.create("a")
    with pytest.raises(ConflictError, match="already"):
        sessions.fork("a", "b")
    with pytest.raises(ConflictError, match="already"):
        sessions.import_file("b", sessions.export_file("a"))
    sessions.create("c")
    with pytest.raises(ConflictError, match="3 sessions are stored"):
        sessions.create("d")


def test_one_writer_at_a_time(folder: Path, engine: Engine) -> None:
    sessions = sessions_in(folder, engine)
    sessions.create("a")
    lease = sessions.lease("a")
    for call in (sessions.lease, sessions.delete):
        with pytest.raises(ConflictError, match="uses the session 'a'"):
            call("a")
    assert sessions.fork("a", "b").num_seen == 0
    lease.release()
    sessions.lease("a").release()
    sessions.delete("a")


BAD_NAMES = [
    "",
    ".",
    "..",
    "../a",
    "a/b",
    "/etc/passwd",
    "a.b",
    "A",
    "ä",
    "-a",
    "a" * 65,
    "a\0",
    "a\n",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_cannot_leave_the_folder(folder: Path, engine: Engine, name: str) -> None:
    sessions = sessions_in(folder, engine)
    sessions.create("a")
    calls = (
        sessions.create,
        sessions.info,
        sessions.delete,
        sessions.export_file,
        sessions.lease,
        lambda name: sessions.fork("a", name),
        lambda name: sessions.fork(name, "b"),
        lambda name: sessions.import_file(name, b""),
    )
    for call in calls:
        with pytest.raises(InputError, match="session's name"):
            call(name)
    assert [path.name for path in folder.iterdir()] == ["a.lacache"]
    assert [path.name for path in folder.parent.iterdir()] == ["sessions"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "the file is not a safetensors file"),
        (lambda data: b"\x80\x04pickle" * 9, "the file is not a safetensors file"),
        (lambda data: data[:-1], "the file is cut off"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "the file is damaged"),
    ],
)
def test_what_cannot_be_imported(
    folder: Path, engine: Engine, damage: object, message: str
) -> None:
    sessions = sessions_in(folder, engine)
    sessions.create("a")
    write(sessions, engine, "a", [5])
    assert callable(damage)
    with pytest.raises(InputError, match=message):
        sessions.import_file("b", damage(sessions.export_file("a")))
    assert [path.name for path in folder.iterdir()] == ["a.lacache"]


def test_a_session_of_another_cache_is_not_imported(folder: Path, engine: Engine) -> None:
    sessions = sessions_in(folder, engine)
    other = sessions_in(folder / "other", new_engine(capacity=48))
    other.create("a")
    with pytest.raises(InputError, match="the file was saved with policy="):
        sessions.import_file("a", other.export_file("a"))


def test_what_a_killed_process_left_is_swept(folder: Path, engine: Engine) -> None:
    sessions_in(folder, engine).create("a")
    (folder / ".lacache-0123").write_bytes(b"half")
    assert names(sessions_in(folder, engine)) == [("a", 0)]
    assert [path.name for path in folder.iterdir()] == ["a.lacache"]


def test_a_damaged_session_is_reported_and_stays(folder: Path, engine: Engine) -> None:
    sessions = sessions_in(folder, engine)
    sessions.create("a")
    path = folder / "a.lacache"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    lease = sessions.lease("a")
    with pytest.raises(StorageError, match="the session 'a' is damaged") as caught:
        lease.load()
    assert str(folder) not in str(caught.value)
    lease.release()
    sessions.create("b")
    path.write_bytes(b"")
    assert [(info.name, info.num_seen) for info in sessions.all()] == [("a", None), ("b", 0)]
    with pytest.raises(StorageError, match="'a' is damaged"):
        sessions.lease("a")
    sessions.delete("a")


def test_what_says_what_cannot_be_is_not_imported(folder: Path, engine: Engine) -> None:
    """Whoever makes a file can make its checksum too."""
    sessions = sessions_in(folder, engine)
    sessions.create("a")
    write(sessions, engine, "a", [5, 6])
    header, tensors = read_snapshot(folder / "a.lacache")
    for wrong in ({"last": 10**6}, {"num_seen": 7}, {"num_seen": "x"}):
        write_snapshot(folder / "made", header | wrong, tensors)
        with pytest.raises(InputError, match="the file"):
            sessions.import_file("b", (folder / "made").read_bytes())
    assert [info.name for info in sessions.all()] == ["a"]


def test_a_full_disk_is_not_the_clients_fault(
    folder: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = sessions_in(folder, engine)
    sessions.create("a")
    lease = sessions.lease("a")
    snapshot = lease.load()

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshot_file.os, "fsync", full)
    for save in (
        lambda: lease.save(snapshot),
        lambda: sessions.create("b"),
        lambda: sessions.fork("a", "c"),
        lambda: sessions.import_file("d", sessions.export_file("a")),
    ):
        with pytest.raises(StorageError, match="No space left on device") as caught:
            save()
        assert str(folder) not in str(caught.value)
    assert names(sessions) == [("a", 0)]
    assert [path.name for path in folder.iterdir()] == ["a.lacache"]


def test_nobody_else_may_read_them(folder: Path, engine: Engine) -> None:
    sessions = sessions_in(folder, engine)
    sessions.create("a")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "a.lacache").stat().st_mode & 0o777 == 0o600


def test_a_slow_disk_holds_up_no_other_session(
    folder: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = sessions_in(folder, engine)
    sessions.create("a")
    sessions.create("b")
    lease = sessions.lease("a")
    snapshot = lease.load()
    is_saving, may_go_on = threading.Event(), threading.Event()

    def slow(handle: int) -> None:
        is_saving.set()
        assert may_go_on.wait(20)

    monkeypatch.setattr(snapshot_file.os, "fsync", slow)
    saver = threading.Thread(target=lease.save, args=(snapshot,))
    saver.start()
    assert is_saving.wait(20)
    sessions.lease("b").release()
    may_go_on.set()
    saver.join()


def write_version_0_1(path: Path) -> str:
    """Write a session as version 0.1 did, and return the name of the folder that it had then."""
    header, tensors = read_snapshot(path)
    plan = {
        **{"name": "ladder", "capacity": CAPACITY, "span": POLICY.span, "overlap": POLICY.overlap},
        **{"sinks": POLICY.sinks, "recent": None, "refill": POLICY.evict_batch},
        **{"geometry": "interleaved", "unit": 1, "window_layers": []},
    }
    old = {n: v for n, v in header.items() if n != "policy"} | {"plan": plan}
    write_snapshot(path, old, tensors)
    return Snapshot.load(path).kind[:16]


def at_slots() -> dict[str, Engine]:
    """Return an engine whose keys stand at their slots, as in version 0.1."""
    policy = replace(POLICY, positions="slots")
    return {NAME: Engine(tiny_llama(), CAPACITY, policy, max_sequences=2, chunk_size=16)}


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """Return the folder that a server made, with a session."""
    engine = at_slots()[NAME]
    with service(storage=StorageSettings(folder=tmp_path), engines=at_slots()):
        pass
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    sessions = sessions_in(folder / "sessions", engine)
    sessions.create("a")
    write(sessions, engine, "a", [5, 6])
    return folder


def test_sessions_of_version_0_1_are_found(
    tmp_path: Path, served: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It named the folder of an engine by a plan in JSON, which its snapshots have too."""
    old = served.rename(tmp_path / write_version_0_1(served / "sessions" / "a.lacache"))
    with service(storage=StorageSettings(folder=tmp_path)):
        said = capsys.readouterr().err
        assert said.count(f"{old} has sessions of lacache 0.1, which this server cannot") == 1
        assert "positions=slots" in said
    assert old.exists()
    (unused,) = (path for path in tmp_path.iterdir() if path.is_dir() and path != old)
    shutil.rmtree(unused)
    with service(storage=StorageSettings(folder=tmp_path), engines=at_slots()) as one:
        (model,) = one.models.values()
        assert model.sessions is not None
        assert names(model.sessions) == [("a", 2)]
    assert served.exists()
    assert not old.exists()
    assert "lacache 0.1" not in capsys.readouterr().err


def test_folders_of_other_engines_are_left_alone(
    tmp_path: Path, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if a session of version 0.1, which the new engine could resume, was imported there."""
    imported = served / "sessions" / "b.lacache"
    imported.write_bytes((served / "sessions" / "a.lacache").read_bytes())
    write_version_0_1(imported)
    other = served.rename(tmp_path / "0123456789abcdef")
    monkeypatch.setattr(Snapshot, "load", lambda path: pytest.fail(f"{path} was loaded"))
    with service(storage=StorageSettings(folder=tmp_path), engines=at_slots()) as one:
        (model,) = one.models.values()
        assert model.sessions is not None
        assert model.sessions.all() == []
    assert sorted(path.name for path in (other / "sessions").iterdir()) == [
        "a.lacache",
        "b.lacache",
    ]
