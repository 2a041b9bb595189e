"""What is served under one name."""

from dataclasses import dataclass
from typing import final

from lacache.server.engine_thread import EngineThread
from lacache.server.holding import Holding
from lacache.server.state.prefixes import Prefixes
from lacache.server.state.sessions import Sessions


@final
@dataclass(frozen=True)
class Served:
    """A model with one size of cache.

    Args:
        name: as clients call it.
        thread: with its engine.
        prefixes: beginnings that are known.
        sessions: that have a name; None where nothing is kept on disk.
        holding: what the cache holds after any number of tokens.
    """

    name: str
    thread: EngineThread
    prefixes: Prefixes
    sessions: Sessions | None
    holding: Holding

    def close(self) -> None:
        """End what is written, and keep what is to be kept."""
        self.thread.close()
        self.prefixes.close()
