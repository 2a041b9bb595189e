"""Known beginnings: the longest is found, the least recently used go, damaged files are no harm."""

import os
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lacache import Engine
from lacache.engine.snapshot import Snapshot
from lacache.server import prefix_cache
from lacache.server.prefix_cache import PrefixCache, PrefixFiles, prefix_keys
from tests.server.serving import new_engine

MIB = 2**20


@pytest.fixture(scope="module")
def engine() -> Engine:
    return new_engine()


def state(engine: Engine, tokens: list[int], *, with_logits: bool = True) -> Snapshot:
    with engine.open() as session:
        if with_logits:
            list(session.generate(tokens, max_new_tokens=0))
        else:
            list(session.generate(tokens, max_new_tokens=1))
            session.drop_last()
        return session.snapshot()


def known(engine: Engine, *texts: list[int], most_bytes: int = MIB) -> PrefixCache:
    prefixes = PrefixCache(most_bytes)
    for tokens in texts:
        prefixes.put(torch.tensor(tokens), state(engine, tokens))
    return prefixes


def length(found: Snapshot | None) -> int:
    return 0 if found is None else found.num_seen


@given(
    tokens=st.lists(st.integers(0, 200_000), max_size=30),
    lengths=st.sets(st.integers(0, 40), max_size=8),
)
def test_keys_are_digests_of_beginnings(tokens: list[int], lengths: set[int]) -> None:
    wanted = [
        (n, sha256(b"".join(t.to_bytes(8, "little") for t in tokens[:n])).hexdigest())
        for n in sorted(lengths)
        if n <= len(tokens)
    ]
    assert prefix_keys(torch.tensor(tokens, dtype=torch.long), lengths) == wanted


@given(
    texts=st.lists(st.lists(st.integers(5, 6), min_size=1, max_size=6), max_size=5),
    prompt=st.lists(st.integers(5, 6), min_size=1, max_size=8),
)
def test_the_longest_beginning_is_found(
    engine: Engine, texts: list[list[int]], prompt: list[int]
) -> None:
    found = known(engine, *texts).longest(torch.tensor(prompt))
    beginnings = [text for text in texts if prompt[: len(text)] == text]
    assert length(found) == max(map(len, beginnings), default=0)


def test_at_the_very_end_logits_are_needed(engine: Engine) -> None:
    tokens = [5, 6, 7]
    prefixes = known(engine, tokens[:2])
    prefixes.put(torch.tensor(tokens), state(engine, tokens, with_logits=False))
    assert length(prefixes.longest(torch.tensor(tokens))) == 2
    assert length(prefixes.longest(torch.tensor([*tokens, 8]))) == 3
    prefixes.put(torch.tensor(tokens), state(engine, tokens))
    assert length(prefixes.longest(torch.tensor(tokens))) == 3
    prefixes.put(torch.tensor(tokens), state(engine, tokens, with_logits=False))
    assert length(prefixes.longest(torch.tensor(tokens))) == 3


def test_only_its_own_tokens_are_penalised(engine: Engine) -> None:
    prefixes = PrefixCache(MIB)
    prefixes.put(torch.tensor([9, 5, 9]), state(engine, [9, 5, 9], with_logits=False))
    found = prefixes.longest(torch.tensor([9, 5, 9, 1]))
    assert found is not None
    assert torch.equal(found.sampler.seen, torch.tensor([5, 9]))


def test_the_least_recently_used_go(engine: Engine) -> None:
    size = state(engine, [5, 6]).num_bytes
    prefixes = known(engine, [1, 9], [2, 9], [3, 9], most_bytes=3 * size)
    assert length(prefixes.longest(torch.tensor([1, 9, 0]))) == 2
    prefixes.put(torch.tensor([4, 9]), state(engine, [4, 9]))
    assert [length(prefixes.longest(torch.tensor([n, 9, 0]))) for n in (1, 2, 3, 4)] == [2, 0, 2, 2]
    assert prefixes.num_bytes == 3 * size
    assert known(engine, [1, 9], most_bytes=size - 1).num_bytes == 0


def written(engine: Engine, folder: Path, *texts: list[int], most_bytes: int = MIB) -> None:
    prefixes = PrefixCache(MIB, PrefixFiles(folder, engine.kind, most_bytes))
    for tokens in texts:
        prefixes.put(torch.tensor(tokens), state(engine, tokens))
    prefixes.close()


def test_files_survive(engine: Engine, tmp_path: Path) -> None:
    written(engine, tmp_path, [5, 6], [5, 6, 7, 8])
    prefixes = PrefixCache(MIB, PrefixFiles(tmp_path, engine.kind, MIB))
    assert prefixes.num_bytes == 0
    assert length(prefixes.longest(torch.tensor([5, 6, 7]))) == 2
    found = prefixes.longest(torch.tensor([5, 6, 7, 8, 9]))
    assert found is not None
    assert prefixes.num_bytes > 0
    with engine.resume(found) as session:
        again = list(session.generate([9], max_new_tokens=5))
    assert again == list(engine.submit([5, 6, 7, 8, 9], max_new_tokens=5))
    prefixes.close()


def test_files_are_bounded(engine: Engine, tmp_path: Path) -> None:
    written(engine, tmp_path, [1])
    size = next(tmp_path.glob("*.lacache")).stat().st_size
    written(engine, tmp_path, [2], [3], [4], most_bytes=2 * size)
    assert len(list(tmp_path.iterdir())) == 2
    files = PrefixFiles(tmp_path, engine.kind, size)
    assert files.keys() == tuple(prefix_keys(torch.tensor([4]), {1}))
    files.close()


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "of another kind"])
def test_files_that_are_no_good(engine: Engine, tmp_path: Path, damage: str) -> None:
    written(engine, tmp_path, [5, 6])
    path = next(tmp_path.glob("*.lacache"))
    files = PrefixFiles(tmp_path, engine.kind if damage != "of another kind" else "x", MIB)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[:-1])
    elif damage == "changed":
        data[-1] ^= 1
        path.write_bytes(data)
    elif damage == "gone":
        path.unlink()
    prefixes = PrefixCache(MIB, files)
    assert prefixes.longest(torch.tensor([5, 6, 7])) is None
    assert list(tmp_path.iterdir()) == []
    prefixes.close()


def test_a_folder_that_cannot_be_written_costs_time_only(engine: Engine, tmp_path: Path) -> None:
    folder = tmp_path / "known"
    files = PrefixFiles(folder, engine.kind, MIB)
    os.rmdir(folder)
    prefixes = PrefixCache(MIB, files)
    prefixes.put(torch.tensor([5, 6]), state(engine, [5, 6]))
    prefixes.close()
    assert length(prefixes.longest(torch.tensor([5, 6, 7]))) == 2
    assert files.keys() == ()


def test_what_cannot_be_written_is_still_read(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(engine, tmp_path, [5, 6])
    prefixes = PrefixCache(MIB, PrefixFiles(tmp_path, engine.kind, MIB))

    def read_only(*arguments: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(prefix_cache.os, "utime", read_only)
    assert length(prefixes.longest(torch.tensor([5, 6, 7]))) == 2
    prefixes.close()


def test_what_a_killed_process_left_is_swept(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / ".lacache-0123").write_bytes(b"half")
    PrefixFiles(tmp_path, engine.kind, MIB).close()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_knows_more_stays(engine: Engine, tmp_path: Path) -> None:
    prefixes = PrefixCache(MIB, PrefixFiles(tmp_path, engine.kind, MIB))
    prefixes.put(torch.tensor([5, 6]), state(engine, [5, 6]))
    prefixes.put(torch.tensor([5, 6]), state(engine, [5, 6], with_logits=False))
    prefixes.close()
    again = PrefixCache(MIB, PrefixFiles(tmp_path, engine.kind, MIB))
    assert length(again.longest(torch.tensor([5, 6]))) == 2
    again.close()
