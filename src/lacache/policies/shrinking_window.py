"""A window that gives its slots, one by one, to a history that grows elsewhere."""

from dataclasses import dataclass
from typing import final

from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.policies.schedule import Policy, Schedule, SlotRanges, State


@final
@dataclass(frozen=True)
class ShrinkingWindow(Policy):
    """Sinks and the newest tokens, in what the bytes of a growing history leave.

    Up to `capacity` tokens all KV heads hold everything. From then on each token that the
    `history_heads` gain is paid by the `window_heads` together, until these hold `least` each.
    So the bytes of `capacity` tokens per KV head are in use at all times, up to one batch, and
    never more.

    Args:
        capacity: tokens per KV head, averaged over the heads of both kinds.
        least: capacity of a window in the end.
        history_heads: KV heads that keep every token while the windows shrink.
        window_heads: KV heads with this window.
        sinks: first tokens, never evicted.
        evict_batch: tokens that come in from one compaction to the next.

    Raises:
        ConfigError: a value out of range.
    """

    capacity: int
    least: int
    history_heads: int
    window_heads: int
    sinks: int = 4
    evict_batch: int = 1

    def __post_init__(self) -> None:
        validate_int("capacity", self.capacity, 1)
        validate_int("history_heads", self.history_heads, 1)
        validate_int("window_heads", self.window_heads, 1)
        validate_int("sinks", self.sinks, 0)
        validate_int("evict_batch", self.evict_batch, 1)
        validate_int("least", self.least, 1)
        smallest = self.sinks + self.evict_batch
        if self.least < smallest:
            raise ConfigError(
                f"least={self.least} must be at least {smallest} = sinks {self.sinks} + "
                f"evict_batch {self.evict_batch}; try least={smallest}"
            )
        if self.capacity < self.least:
            raise ConfigError(
                f"least={self.least} must be at most capacity={self.capacity}; try "
                f"least={self.capacity}"
            )

    @property
    def history_capacity(self) -> int:
        """What the history's heads can hold in the end, each."""
        heads = self.history_heads + self.window_heads
        return (self.capacity * heads - self.least * self.window_heads) // self.history_heads

    def smallest_capacity(self, num_layers: int) -> int:
        """That of the window in the end."""
        return self.least

    def bind(self, num_layers: int) -> "ShrinkingWindowSchedule":
        """The schedule, the same at any depth."""
        return ShrinkingWindowSchedule(self, num_layers)


@final
class ShrinkingWindowSchedule(Schedule):
    """A compaction every `evict_batch` tokens, after which the next ones fit to the last."""

    def __init__(self, config: ShrinkingWindow, num_layers: int) -> None:
        self.config = config
        self.capacity = config.capacity
        self.steady_from = config.history_capacity + 1
        self.patterns = (0,) * num_layers

    def limit(self, num_seen: int) -> int:
        """What the history leaves, within the bounds."""
        config = self.config
        total = config.capacity * (config.history_heads + config.window_heads)
        left = total - config.history_heads * num_seen
        return min(config.capacity, max(config.least, left // config.window_heads))

    def start(self) -> State:
        """Empty."""
        return State(0, 0, self.config.sinks)

    def room(self, state: State) -> int:
        """Tokens up to the next compaction; 0 where it is due."""
        if self.is_full(state):
            return 0
        beyond = state.num_seen - self.capacity
        return -beyond if beyond < 0 else self.config.evict_batch - beyond % self.config.evict_batch

    def compact(self, state: State) -> State:
        """Free as many slots as make the next `evict_batch` tokens fit."""
        evict_batch = self.config.evict_batch
        return state._replace(num_cached=self.limit(state.num_seen + evict_batch) - evict_batch)

    def evicted_slots(self, state: State, pattern: int) -> SlotRanges:
        """The oldest tokens after the sinks."""
        freed = state.num_cached - self.compact(state).num_cached
        return [(self.config.sinks, self.config.sinks + freed)]
