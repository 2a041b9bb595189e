"""What a server keeps of texts when they have ended."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

from lacache.common.validation import validate_int


@final
@dataclass(frozen=True, kw_only=True)
class Keeping:
    """How much, and where.

    Args:
        memory_bytes: of known beginnings in memory, for each size of cache; 0 keeps none.
        folder: where sessions, and known beginnings too, are kept on disk; None is nowhere. It is
            as private as the texts, and one server has it at a time.
        disk_bytes: of known beginnings on disk, for each size of cache.
        sessions: most that there may be, for each size of cache.

    Raises:
        ConfigError: a value out of range.
    """

    memory_bytes: int = 2**30
    folder: Path | None = None
    disk_bytes: int = 4 * 2**30
    sessions: int = 1_000

    def __post_init__(self) -> None:
        validate_int("memory_bytes", self.memory_bytes, 0)
        validate_int("disk_bytes", self.disk_bytes, 0)
        validate_int("sessions", self.sessions, 0)
