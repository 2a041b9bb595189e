"""Settings of a server: its address, the limits of its requests, and its storage."""

import ipaddress
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from lacache.common.validation import validate_int, validate_number
from lacache.errors import ConfigError


@final
@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of each request, and of the queue of requests.

    Args:
        prompt_tokens: most tokens of a prompt.
        new_tokens: most tokens that are generated for one sequence.
        waiting: most sequences that wait for a batch slot; further requests get status 429.
        seconds: longest time of a sequence, its wait included.
        body_bytes: most bytes of a request's body.

    Raises:
        ConfigError: a value is out of range.
    """

    prompt_tokens: int = 1_000_000
    new_tokens: int = 100_000
    waiting: int = 64
    seconds: float = 3_600.0
    body_bytes: int = 16 * 2**20

    def __post_init__(self) -> None:
        validate_int("prompt_tokens", self.prompt_tokens, 1)
        validate_int("new_tokens", self.new_tokens, 1)
        validate_int("waiting", self.waiting, 0)
        validate_int("body_bytes", self.body_bytes, 1)
        validate_number("seconds", self.seconds, 60.0)
        if not 0 < self.seconds < math.inf:
            raise ConfigError(f"seconds={self.seconds} must be above 0; try seconds=60")


@final
@dataclass(frozen=True, kw_only=True)
class StorageSettings:
    """Sizes and place of the prefix cache and of the sessions; sizes are for each budget.

    Args:
        memory_bytes: size of the prefix cache in memory; 0 turns it off.
        folder: where sessions and the prefix cache are stored on disk; None stores nothing. It is
            as private as the prompts, and only one server at a time may use it.
        disk_bytes: size of the prefix cache on disk.
        sessions: most sessions.

    Raises:
        ConfigError: a value is out of range.
    """

    memory_bytes: int = 2**30
    folder: Path | None = None
    disk_bytes: int = 4 * 2**30
    sessions: int = 1_000

    def __post_init__(self) -> None:
        validate_int("memory_bytes", self.memory_bytes, 0)
        validate_int("disk_bytes", self.disk_bytes, 0)
        validate_int("sessions", self.sessions, 0)


@final
@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """All settings of a server besides its engines.

    Args:
        host: address of this machine to listen at.
        port: port to listen at; 0 chooses a free one.
        api_key: key that clients must send; None asks for none.
        limits: limits of requests.
        storage: prefix cache and sessions.

    Raises:
        ConfigError: the key is empty, or there is none at an address that others can reach.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = field(default=None, repr=False)
    limits: Limits = field(default_factory=Limits)
    storage: StorageSettings = field(default_factory=StorageSettings)

    def __post_init__(self) -> None:
        validate_address(self.host, self.api_key)


def validate_address(host: str, api_key: str | None) -> None:
    """Check that a server that other machines can reach has an API key.

    Raises:
        ConfigError: it has none, or an empty one.
    """
    if api_key == "":
        raise ConfigError("the API key is empty; give one, or leave it out on loopback")
    if api_key is None and not _is_loopback(host):
        raise ConfigError(
            f"host={host!r} can be reached from other machines, and there is no API key; set "
            "LACACHE_API_KEY, or try --host 127.0.0.1"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
