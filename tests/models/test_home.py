from pathlib import Path

import pytest

from lacache.models.home import cache_home, converted_folder


def test_own_variable_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somebody")
    monkeypatch.delenv("LACACHE_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_home() == Path("/somebody/.cache/lacache")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_home() == Path("/caches/lacache")
    monkeypatch.setenv("LACACHE_HOME", "~/mine")
    assert cache_home() == Path("/somebody/mine")


def test_folder_depends_on_the_content() -> None:
    assert converted_folder("a", "0" * 64) != converted_folder("a", "1" * 64)
    assert converted_folder("a", "0" * 64) != converted_folder("b", "0" * 64)
