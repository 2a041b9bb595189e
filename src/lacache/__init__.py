"""LaCache: a KV cache of constant size for decoder LLMs (arXiv 2507.14204)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lacache.version import __version__

if TYPE_CHECKING:
    from lacache.cache.lacache import LaCache
    from lacache.cache.report import CacheReport
    from lacache.calibration.calibrate import calibrate
    from lacache.engine.cache_stream import stream
    from lacache.engine.engine import Engine
    from lacache.engine.sampling import Sampling
    from lacache.engine.session import Session
    from lacache.policies.full import Full
    from lacache.policies.grammar import parse_policy
    from lacache.policies.groups import Group, Groups
    from lacache.policies.ladder import Ladder
    from lacache.policies.paper import Paper
    from lacache.policies.retrieval_heads import RetrievalHeads
    from lacache.policies.streaming import Streaming

# Loaded on first use, so that `lacache.policies` and the command line's help need no torch.
_HOMES = {
    "CacheReport": "lacache.cache.report",
    "Engine": "lacache.engine.engine",
    "Full": "lacache.policies.full",
    "Group": "lacache.policies.groups",
    "Groups": "lacache.policies.groups",
    "LaCache": "lacache.cache.lacache",
    "Ladder": "lacache.policies.ladder",
    "Paper": "lacache.policies.paper",
    "RetrievalHeads": "lacache.policies.retrieval_heads",
    "Sampling": "lacache.engine.sampling",
    "Session": "lacache.engine.session",
    "Streaming": "lacache.policies.streaming",
    "calibrate": "lacache.calibration.calibrate",
    "parse_policy": "lacache.policies.grammar",
    "stream": "lacache.engine.cache_stream",
}

__all__ = [
    "CacheReport",
    "Engine",
    "Full",
    "Group",
    "Groups",
    "LaCache",
    "Ladder",
    "Paper",
    "RetrievalHeads",
    "Sampling",
    "Session",
    "Streaming",
    "__version__",
    "calibrate",
    "parse_policy",
    "stream",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
