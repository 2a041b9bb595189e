from pathlib import Path

import pytest

from lacache.common.home import cache_home, profiles_folder


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
