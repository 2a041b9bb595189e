"""StreamingLLM (arXiv 2309.17453), with positions by slot."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from lacache.cache import HookedCache, LaCache
from lacache.common.records import Record
from lacache.common.validation import validate_int
from lacache.evals.methods.method import Method
from lacache.evals.methods.settings import (
    EVICT_BATCH,
    evict_batch_slots,
    settings_record,
    validate_share,
)
from lacache.policies import Streaming


@final
@dataclass(frozen=True)
class StreamingMethod(Method):
    """The first `sinks` tokens and the newest ones, the same in every layer.

    Args:
        sinks: first tokens, never evicted.
        evict_batch: share of the capacity that one compaction frees.
    """

    name: ClassVar[str] = "streaming"

    sinks: int = 4
    evict_batch: float = EVICT_BATCH

    def __post_init__(self) -> None:
        validate_int("sinks", self.sinks, 0)
        validate_share("evict_batch", self.evict_batch)

    def open(self, model: Any, *, capacity: int, dense: bool) -> HookedCache:
        """An empty sink window."""
        policy = Streaming(
            capacity, sinks=self.sinks, evict_batch=evict_batch_slots(self.evict_batch, capacity)
        )
        return LaCache.from_model(model, policy, prefill="dense" if dense else "chunked")

    def record(self) -> Record:
        """Name and settings."""
        return settings_record(self.name, self)
