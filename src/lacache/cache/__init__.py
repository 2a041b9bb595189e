"""The transformers cache: any policy of `lacache.policies` on an unpatched model."""

from lacache.cache.lacache import LaCache
from lacache.cache.reading import ReadingCache
from lacache.cache.report import CacheReport

__all__ = ["CacheReport", "LaCache", "ReadingCache"]
