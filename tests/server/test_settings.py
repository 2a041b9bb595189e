"""Settings of a server that cannot work are refused."""

from pathlib import Path
from typing import Any

import pytest

from lacache.errors import ConfigError
from lacache.server.settings import Limits, ServerSettings, StorageSettings


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (ServerSettings, {"host": "0.0.0.0"}, "'0.0.0.0' can be reached from other machines"),
        (ServerSettings, {"host": "example.org"}, "set LACACHE_API_KEY, or try --host 127.0.0.1"),
        (ServerSettings, {"api_key": ""}, "the API key is empty"),
        (Limits, {"prompt_tokens": 0}, "prompt_tokens=0 must be at least 1"),
        (Limits, {"waiting": -1}, "waiting=-1 must be at least 0"),
        (Limits, {"seconds": 0.0}, "seconds=0.0 must be above 0; try seconds=60"),
        (Limits, {"body_bytes": 1.5}, "body_bytes=1.5"),
        (StorageSettings, {"memory_bytes": -1}, "memory_bytes=-1 must be at least 0"),
        (StorageSettings, {"sessions": True}, "sessions=True"),
    ],
)
def test_settings_are_validated(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**options)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "::1"])
def test_loopback_needs_no_key(host: str) -> None:
    assert ServerSettings(host=host).api_key is None


def test_the_key_is_not_in_the_repr() -> None:
    settings = ServerSettings(
        host="0.0.0.0", api_key="secret", storage=StorageSettings(folder=Path("x"))
    )
    assert "secret" not in repr(settings)
