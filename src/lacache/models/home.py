"""Where converted models are kept."""

import os
from pathlib import Path

# Raised when the conversion changes, so that older results are left alone and made anew.
FORMAT = 1


def cache_home() -> Path:
    """The user's cache directory of this package.

    `$LACACHE_HOME`, else `$XDG_CACHE_HOME/lacache`, else `~/.cache/lacache`. Not created here.
    """
    if own := os.environ.get("LACACHE_HOME"):
        return Path(own).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser() / "lacache"
    return Path.home() / ".cache" / "lacache"


def converted_folder(name: str, sha256: str) -> Path:
    """Folder of the model that a GGUF file of this content becomes."""
    return cache_home() / "models" / f"{name}-{sha256[:12]}-v{FORMAT}"
