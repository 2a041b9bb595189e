"""The ladder as the authors' released code sets it (github.com/GATECH-EIC/LaCache)."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from lacache.cache import HookedCache, LaCache
from lacache.common.records import Record
from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.evals.methods.method import Method
from lacache.evals.methods.settings import settings_record
from lacache.models.model_info import model_info
from lacache.policies import Geometry, Ladder
from lacache.policies.geometry import validate_span


@final
@dataclass(frozen=True)
class ReleasedLadder(Method):
    """What `Ladder.released` keeps, at a capacity instead of the code's `cache_size`.

    The code holds up to `cache_size + R // 2 + 1` tokens, R being what a band frees. Here that
    number is the capacity, so that it holds no more bytes than other methods; at their
    `cache_size` it would hold that little more. It compacts as soon as one band can free
    anything, so a chunked prefill goes nearly token by token.

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
        validate_span(self.span, self.overlap, "interleaved")
        validate_int("sinks", self.sinks, 0)

    def open(self, model: Any, *, capacity: int, dense: bool) -> HookedCache:
        """An empty ladder."""
        policy = self.policy(capacity, len(model_info(model).growing))
        return LaCache.from_model(model, policy, prefill="dense" if dense else "chunked")

    def policy(self, capacity: int, num_layers: int) -> Ladder:
        """The policy for a capacity in tokens, over layers with a growing cache.

        Raises:
            ConfigError: the capacity is too small.
        """
        more = Geometry(num_layers, self.span, self.overlap).freed // 2 + 1
        if capacity <= more:
            raise ConfigError(f"capacity={capacity} must be above {more}; try {2 * more}")
        return Ladder.released(capacity - more, self.sinks, self.span, self.overlap, num_layers)

    def record(self) -> Record:
        """Name and settings."""
        return settings_record(self.name, self)
