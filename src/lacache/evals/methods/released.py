"""The ladder as the authors' released code sets it (github.com/GATECH-EIC/LaCache)."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from lacache.cache import LaCache, ReadingCache
from lacache.cache.facts import model_facts
from lacache.core import Geometry, LadderConfig
from lacache.core.checks import check_int
from lacache.core.errors import ConfigError
from lacache.core.geometry import check_span
from lacache.evals.methods.method import Method
from lacache.evals.methods.settings import settings_record
from lacache.evals.records import Record


@final
@dataclass(frozen=True)
class ReleasedLadder(Method):
    """What `LadderConfig.released` keeps, at a capacity instead of the code's `cache_size`.

    The code holds up to `cache_size + R // 2 + 1` tokens, R being what a band frees. Here that
    number is the capacity, so that it holds no more bytes than other methods; at their
    `cache_size` it would hold that little more. It compacts as soon as one band can free
    anything, so a segmented prefill goes nearly token by token.

    Args:
        span: layers in a row that keep a token.
        overlap: layers that neighbouring runs share.
        sinks: first tokens, never evicted (the code's `start_size`).
    """

    name: ClassVar[str] = "released-ladder"

    span: int
    overlap: int = 0
    sinks: int = 4

    def __post_init__(self) -> None:
        check_span(self.span, self.overlap, "interleaved")
        check_int("sinks", self.sinks, 0)

    def open(self, model: Any, *, capacity: int, dense: bool) -> ReadingCache:
        """An empty ladder."""
        policy = self.policy(capacity, len(model_facts(model).growing))
        return LaCache.from_model(model, policy, prefill="dense" if dense else "segmented")

    def policy(self, capacity: int, num_layers: int) -> LadderConfig:
        """The policy for a capacity in tokens, over layers with a growing cache.

        Raises:
            ConfigError: the capacity is too small.
        """
        more = Geometry(num_layers, self.span, self.overlap).freed // 2 + 1
        if capacity <= more:
            raise ConfigError(f"capacity={capacity} must be above {more}; try {2 * more}")
        return LadderConfig.released(
            capacity - more, self.sinks, self.span, self.overlap, num_layers
        )

    def record(self) -> Record:
        """Name and settings."""
        return settings_record(self.name, self)
