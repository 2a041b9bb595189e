"""StreamingLLM (arXiv 2309.17453): attention sinks and a window of the newest tokens."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.policies.policy import (
    DEFAULT_POSITIONS,
    EVICT_BATCH,
    SINKS,
    LayerPolicy,
    in_slots,
    validate_positions,
    validate_slots,
)
from lacache.policies.schedule import Schedule, SlotRanges, State


@final
@dataclass(frozen=True, kw_only=True)
class Streaming(LayerPolicy):
    """Every layer keeps the first `sinks` tokens and the newest ones.

    Args:
        sinks: first tokens, never evicted.
        evict_batch: slots that one compaction frees, or a share of the capacity; 1 as in
            StreamingLLM.
        positions: "original" or "slots"; see `lacache.policies.schedule.POSITIONS`.

    Raises:
        ConfigError: a value out of range.
    """

    sinks: int = SINKS
    evict_batch: float = EVICT_BATCH
    positions: str = DEFAULT_POSITIONS

    names: ClassVar = {"streaming": {}}

    def __post_init__(self) -> None:
        validate_int("sinks", self.sinks, 0)
        validate_slots("evict_batch", self.evict_batch, 1)
        validate_positions(self.positions)

    def schedule(self, num_layers: int, capacity: int) -> "StreamingSchedule":
        """Return the schedule, the same at any depth."""
        evict_batch = in_slots(self.evict_batch, capacity, most=capacity - self.sinks)
        smallest = self.sinks + evict_batch
        if capacity < smallest:
            raise ConfigError(
                f"capacity={capacity} must be at least {smallest} = sinks {self.sinks} + "
                f"evict_batch {evict_batch}; try capacity={smallest}"
            )
        return StreamingSchedule(self, capacity, evict_batch, num_layers)

    def resolved(self, num_layers: int, capacity: int) -> "Streaming":
        """Return this policy with the evict batch in slots."""
        return replace(self, evict_batch=self.schedule(num_layers, capacity).evict_batch)


@final
class StreamingSchedule(Schedule):
    """The oldest tokens after the sinks are evicted; the cursor stays at the sinks."""

    def __init__(self, policy: Streaming, capacity: int, evict_batch: int, num_layers: int) -> None:
        self.capacity = capacity
        self.sinks = policy.sinks
        self.positions = policy.positions
        self.evict_batch = evict_batch
        self.patterns = (0,) * num_layers

    def start(self) -> State:
        """Return the state of an empty cache."""
        return State(0, 0, self.sinks)

    def compact(self, state: State) -> State:
        """Return the state after `evict_batch` slots are freed."""
        return state._replace(num_cached=state.num_cached - self.evict_batch)

    def evicted_slots(self, state: State, pattern: int) -> SlotRanges:
        """Return the oldest slots after the sinks."""
        return [(self.sinks, self.sinks + self.evict_batch)]
