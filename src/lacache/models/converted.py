"""Where converted models are kept."""

from pathlib import Path

from lacache.common.home import cache_home

# Raised when the conversion changes, so that older results are left alone and made anew.
FORMAT = 1


def converted_folder(name: str, sha256: str) -> Path:
    """Folder of the model that a GGUF file of this content becomes."""
    return cache_home() / "models" / f"{name}-{sha256[:12]}-v{FORMAT}"
