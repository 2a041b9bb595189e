"""LaCache: a KV cache of constant size for endless reading and writing (arXiv 2507.14204)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lacache.version import __version__

if TYPE_CHECKING:
    from lacache.cache.lacache import LaCache
    from lacache.cache.report import CacheReport
    from lacache.core.full import Full
    from lacache.core.groups import Group, Groups
    from lacache.core.history import HistoryConfig
    from lacache.core.ladder import LadderConfig
    from lacache.core.sink_window import SinkWindow
    from lacache.engine.engine import Engine
    from lacache.engine.sampling import Sampling
    from lacache.engine.session import Session
    from lacache.engine.stream import stream

# Loaded on first use, so that `lacache.core` and the command line's help need no torch.
_HOMES = {
    "CacheReport": "lacache.cache.report",
    "Engine": "lacache.engine.engine",
    "LaCache": "lacache.cache.lacache",
    "Full": "lacache.core.full",
    "Group": "lacache.core.groups",
    "Groups": "lacache.core.groups",
    "HistoryConfig": "lacache.core.history",
    "LadderConfig": "lacache.core.ladder",
    "Sampling": "lacache.engine.sampling",
    "Session": "lacache.engine.session",
    "SinkWindow": "lacache.core.sink_window",
    "stream": "lacache.engine.stream",
}

__all__ = [
    "CacheReport",
    "Engine",
    "Full",
    "Group",
    "Groups",
    "HistoryConfig",
    "LaCache",
    "LadderConfig",
    "Sampling",
    "Session",
    "SinkWindow",
    "__version__",
    "stream",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
