"""The full cache, which everything is compared with."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from lacache.cache import HookedCache, LaCache
from lacache.common.records import Record
from lacache.evals.methods.method import Method
from lacache.evals.methods.settings import settings_record
from lacache.policies import Full


@final
@dataclass(frozen=True)
class FullCache(Method):
    """Keeps every token of every layer, whatever the capacity."""

    name: ClassVar[str] = "full"

    def open(self, model: Any, *, capacity: int, dense: bool) -> HookedCache:
        """An empty cache without a limit."""
        return LaCache.from_model(model, Full())

    def record(self) -> Record:
        """Its name."""
        return settings_record(self.name, self)
