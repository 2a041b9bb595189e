"""Where a server may listen."""

import ipaddress

from lacache.errors import ConfigError


def validate_address(host: str, api_key: str | None) -> None:
    """Check that a server that others can reach asks for a key.

    Raises:
        ConfigError: it would not.
    """
    if api_key == "":
        raise ConfigError("the API key is empty; give one, or leave it out on loopback")
    if api_key is None and not _is_loopback(host):
        raise ConfigError(
            f"host={host!r} can be reached from elsewhere, and there is no API key; set "
            "LACACHE_API_KEY, or try --host 127.0.0.1"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
