from pathlib import Path

import pytest

from lacache.common.files import cache_home, file_sha256, profiles_folder


def test_own_variable_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somebody")
    monkeypatch.delenv("LACACHE_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_home() == Path("/somebody/.cache/lacache")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_home() == Path("/caches/lacache")
    monkeypatch.setenv("LACACHE_HOME", "~/mine")
    assert cache_home() == Path("/somebody/mine")
    assert profiles_folder() == Path("/somebody/mine/profiles")


def test_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc").startswith("ba7816bf8f01cfea")
