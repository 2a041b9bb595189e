"""The user's cache directory of this package."""

import os
from pathlib import Path


def cache_home() -> Path:
    """Where converted models, profiles and compiled code are kept.

    `$LACACHE_HOME`, else `$XDG_CACHE_HOME/lacache`, else `~/.cache/lacache`. Not created here.
    """
    if own := os.environ.get("LACACHE_HOME"):
        return Path(own).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser() / "lacache"
    return Path.home() / ".cache" / "lacache"


def profiles_folder() -> Path:
    """The folder of the user's own profiles. Not created here."""
    return cache_home() / "profiles"
