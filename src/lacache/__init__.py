"""LaCache: a KV cache of constant size for endless reading and writing (arXiv 2507.14204)."""

from lacache.version import __version__

__all__ = ["__version__"]
