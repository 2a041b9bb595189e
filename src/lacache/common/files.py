"""Paths and files: the cache directory, JSON, devices, checksums."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lacache.errors import InputError


def cache_home() -> Path:
    """Return the directory of converted models, profiles and compiled code.

    `$LACACHE_HOME`, else `$XDG_CACHE_HOME/lacache`, else `~/.cache/lacache`. Not created here.
    """
    if own := os.environ.get("LACACHE_HOME"):
        return Path(own).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser() / "lacache"
    return Path.home() / ".cache" / "lacache"


def profiles_folder() -> Path:
    """Return the directory of the user's head profiles. Not created here."""
    return cache_home() / "profiles"


def file_sha256(path: Path) -> str:
    """Return a file's SHA-256 as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_json(text: str | bytes, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """Parse JSON; `parse_constant` is called for NaN and the infinities.

    Raises:
        ValueError: the text is not JSON, or is nested too deeply for the parser.
    """
    try:
        return json.loads(text, parse_constant=parse_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def refuse_device(path: Path, what: str = "") -> None:
    """Refuse an endless device such as /dev/zero; pipes and os.devnull are allowed.

    Args:
        path: the file to read.
        what: a noun for the error, such as "text ".

    Raises:
        InputError: `path` is a device.
    """
    is_device = path.is_char_device() or path.is_block_device()
    if is_device and str(path) != os.devnull:
        raise InputError(f"{what}{path} is a device and may never end; give a file")
