"""The transformers cache: any policy of `lacache.core` on an unpatched model."""

from lacache.cache.lacache import LaCache
from lacache.cache.reading import CacheReport, ReadingCache

__all__ = ["CacheReport", "LaCache", "ReadingCache"]
