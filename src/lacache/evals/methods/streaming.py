"""StreamingLLM (arXiv 2309.17453), with positions by slot."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from lacache.cache import LaCache, ReadingCache
from lacache.core import SinkWindow
from lacache.core.checks import check_int
from lacache.evals.methods.method import Method
from lacache.evals.methods.settings import REFILL, check_share, refill_slots, settings_record
from lacache.evals.records import Record


@final
@dataclass(frozen=True)
class Streaming(Method):
    """The first `sinks` tokens and the newest ones, the same in every layer.

    Args:
        sinks: first tokens, never evicted.
        refill: share of the capacity that one compaction frees.
    """

    name: ClassVar[str] = "streaming"

    sinks: int = 4
    refill: float = REFILL

    def __post_init__(self) -> None:
        check_int("sinks", self.sinks, 0)
        check_share("refill", self.refill)

    def open(self, model: Any, *, capacity: int, dense: bool) -> ReadingCache:
        """An empty sink window."""
        policy = SinkWindow(capacity, sinks=self.sinks, refill=refill_slots(self.refill, capacity))
        return LaCache.from_model(model, policy, prefill="dense" if dense else "segmented")

    def record(self) -> Record:
        """Name and settings."""
        return settings_record(self.name, self)
