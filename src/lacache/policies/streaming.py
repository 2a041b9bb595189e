"""StreamingLLM (arXiv 2309.17453): the sinks and a window of the newest tokens."""

from dataclasses import dataclass
from typing import final

from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.policies.schedule import Policy, Schedule, SlotRanges, State


@final
@dataclass(frozen=True)
class Streaming(Policy):
    """Every layer keeps the first `sinks` tokens and the newest ones.

    Args:
        capacity: most tokens a layer ever holds, the newest included.
        sinks: first tokens, never evicted.
        evict_batch: slots that one compaction frees; 1 as in StreamingLLM.

    Raises:
        ConfigError: a value out of range.
    """

    capacity: int
    sinks: int = 4
    evict_batch: int = 1

    def __post_init__(self) -> None:
        validate_int("capacity", self.capacity, 1)
        validate_int("sinks", self.sinks, 0)
        validate_int("evict_batch", self.evict_batch, 1)
        smallest = self.sinks + self.evict_batch
        if self.capacity < smallest:
            raise ConfigError(
                f"capacity={self.capacity} must be at least {smallest} = sinks {self.sinks} + "
                f"evict_batch {self.evict_batch}; try capacity={smallest}"
            )

    def smallest_capacity(self, num_layers: int) -> int:
        """Sinks and one evict_batch."""
        return self.sinks + self.evict_batch

    def bind(self, num_layers: int) -> "StreamingSchedule":
        """The schedule, the same at any depth."""
        return StreamingSchedule(self, num_layers)


@final
class StreamingSchedule(Schedule):
    """The oldest tokens after the sinks go; the cursor stays at the sinks."""

    def __init__(self, config: Streaming, num_layers: int) -> None:
        self.config = config
        self.capacity = config.capacity
        self.patterns = (0,) * num_layers

    def start(self) -> State:
        """Empty."""
        return State(0, 0, self.config.sinks)

    def compact(self, state: State) -> State:
        """Free `evict_batch` slots."""
        return state._replace(num_cached=state.num_cached - self.config.evict_batch)

    def evicted_slots(self, state: State, pattern: int) -> SlotRanges:
        """The oldest tokens after the sinks."""
        return [(self.config.sinks, self.config.sinks + self.config.evict_batch)]
