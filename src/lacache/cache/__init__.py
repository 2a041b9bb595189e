"""KV caches under a policy: LaCache for transformers, StaticKVCache for the engine.

- `lacache`: the cache for `model.generate`; `layers`, `split_layer` store keys and values of one
  model layer.
- `codecs`: what keys and values are stored in; `encoded`: those of the cache for transformers.
- `layer_group`: the layers that share a schedule, and their compactions.
- `hooked_cache`, `hooks`: forward hooks that split long inputs at compactions, and refuse padding.
- `sequence_state`: counts and positions of one sequence, and compaction plans; for both caches.
- `report`: what a cache holds, as numbers.
- `static/`: the engine's cache.
"""

from lacache.cache.hooked_cache import HookedCache
from lacache.cache.lacache import LaCache
from lacache.cache.report import CacheReport

__all__ = ["CacheReport", "HookedCache", "LaCache"]
