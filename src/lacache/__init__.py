"""LaCache: a KV cache of constant size for endless reading and writing (arXiv 2507.14204)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lacache.version import __version__

if TYPE_CHECKING:
    from lacache.cache.lacache import LaCache
    from lacache.cache.report import CacheReport
    from lacache.engine.engine import Engine
    from lacache.engine.sampling import Sampling
    from lacache.engine.session import Session
    from lacache.engine.stream import stream
    from lacache.policies.full import Full
    from lacache.policies.groups import Group, Groups
    from lacache.policies.ladder import Ladder
    from lacache.policies.retrieval_heads import RetrievalHeads
    from lacache.policies.streaming import Streaming

# Loaded on first use, so that `lacache.policies` and the command line's help need no torch.
_HOMES = {
    "CacheReport": "lacache.cache.report",
    "Engine": "lacache.engine.engine",
    "LaCache": "lacache.cache.lacache",
    "Full": "lacache.policies.full",
    "Group": "lacache.policies.groups",
    "Groups": "lacache.policies.groups",
    "RetrievalHeads": "lacache.policies.retrieval_heads",
    "Ladder": "lacache.policies.ladder",
    "Sampling": "lacache.engine.sampling",
    "Session": "lacache.engine.session",
    "Streaming": "lacache.policies.streaming",
    "stream": "lacache.engine.stream",
}

__all__ = [
    "CacheReport",
    "Engine",
    "Full",
    "Group",
    "Groups",
    "LaCache",
    "Ladder",
    "RetrievalHeads",
    "Sampling",
    "Session",
    "Streaming",
    "__version__",
    "stream",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
