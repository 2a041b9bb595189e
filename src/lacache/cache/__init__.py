"""The transformers cache: any policy of `lacache.core` on an unpatched model."""

from lacache.cache.lacache import CacheReport, LaCache

__all__ = ["CacheReport", "LaCache"]
