"""StreamingLLM (arXiv 2309.17453): the sinks and a window of the newest tokens."""

from dataclasses import dataclass
from typing import final

from lacache.core.checks import check_int
from lacache.core.errors import ConfigError
from lacache.core.schedule import Policy, Runs, Schedule, State


@final
@dataclass(frozen=True)
class SinkWindow(Policy):
    """Every layer keeps the first `sinks` tokens and the newest ones.

    Args:
        capacity: most tokens a layer ever holds, the newest included.
        sinks: first tokens, never evicted.
        refill: slots that one compaction frees; 1 as in StreamingLLM.

    Raises:
        ConfigError: a value out of range.
    """

    capacity: int
    sinks: int = 4
    refill: int = 1

    def __post_init__(self) -> None:
        check_int("capacity", self.capacity, 1)
        check_int("sinks", self.sinks, 0)
        check_int("refill", self.refill, 1)
        smallest = self.sinks + self.refill
        if self.capacity < smallest:
            raise ConfigError(
                f"capacity={self.capacity} must be at least {smallest} = sinks {self.sinks} + "
                f"refill {self.refill}; try capacity={smallest}"
            )

    def smallest_capacity(self, num_layers: int) -> int:
        """Sinks and one refill."""
        return self.sinks + self.refill

    def bind(self, num_layers: int) -> "SinkWindowSchedule":
        """The schedule, the same at any depth."""
        return SinkWindowSchedule(self, num_layers)


@final
class SinkWindowSchedule(Schedule):
    """The oldest tokens after the sinks go; the cursor stays at the sinks."""

    def __init__(self, config: SinkWindow, num_layers: int) -> None:
        self.config = config
        self.capacity = config.capacity
        self.patterns = (0,) * num_layers

    def start(self) -> State:
        """Empty."""
        return State(0, 0, self.config.sinks)

    def compact(self, state: State) -> State:
        """Free `refill` slots."""
        return state._replace(num_cached=state.num_cached - self.config.refill)

    def dropped(self, state: State, pattern: int) -> Runs:
        """The oldest tokens after the sinks."""
        return [(self.config.sinks, self.config.sinks + self.config.refill)]
