"""KV caches under a policy: LaCache for transformers, StaticKVCache for the engine."""

from lacache.cache.hooked_cache import HookedCache
from lacache.cache.lacache import LaCache
from lacache.cache.report import CacheReport

__all__ = ["CacheReport", "HookedCache", "LaCache"]
