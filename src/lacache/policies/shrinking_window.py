"""A window that cedes its slots, batch by batch, to a history that grows in other KV heads."""

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
class ShrinkingWindow(LayerPolicy):
    """Attention sinks and the newest tokens, in the bytes that a growing history leaves.

    Up to the capacity all KV heads hold everything. From then on each token that the
    `growing_heads` gain is paid by the `window_heads` together, until these hold `least` each. So
    the bytes of `capacity` tokens per KV head are in use at all times, up to one batch, and never
    more.

    Args:
        least: capacity of a window in the end.
        growing_heads: KV heads that keep every token while the windows shrink.
        window_heads: KV heads with this window.
        sinks: first tokens, never evicted.
        evict_batch: tokens from one compaction to the next, or a share of the capacity.
        positions: "original" or "slots"; see `lacache.policies.schedule.POSITIONS`.

    Raises:
        ConfigError: a value out of range.
    """

    least: int
    growing_heads: int
    window_heads: int
    sinks: int = SINKS
    evict_batch: float = EVICT_BATCH
    positions: str = DEFAULT_POSITIONS

    names: ClassVar = {"shrinking": {}}

    def __post_init__(self) -> None:
        validate_int("growing_heads", self.growing_heads, 1)
        validate_int("window_heads", self.window_heads, 1)
        validate_int("sinks", self.sinks, 0)
        validate_slots("evict_batch", self.evict_batch, 1)
        validate_int("least", self.least, 1)
        validate_positions(self.positions)

    def schedule(self, num_layers: int, capacity: int) -> "ShrinkingWindowSchedule":
        """Return the schedule, the same at any depth.

        Args:
            num_layers: how many layers there are.
            capacity: tokens per KV head, averaged over the heads of both kinds.
        """
        evict_batch = in_slots(self.evict_batch, capacity, most=self.least - self.sinks)
        smallest = self.sinks + evict_batch
        if self.least < smallest:
            raise ConfigError(
                f"least={self.least} must be at least {smallest} = sinks {self.sinks} + "
                f"evict_batch {evict_batch}; try least={smallest}"
            )
        if capacity < self.least:
            raise ConfigError(
                f"least={self.least} must be at most capacity={capacity}; try least={capacity}"
            )
        return ShrinkingWindowSchedule(self, capacity, evict_batch, num_layers)

    def resolved(self, num_layers: int, capacity: int) -> "ShrinkingWindow":
        """Return this policy with the evict batch in slots."""
        return replace(self, evict_batch=self.schedule(num_layers, capacity).evict_batch)


@final
class ShrinkingWindowSchedule(Schedule):
    """A compaction every `evict_batch` tokens, each as large as the next batch needs."""

    def __init__(
        self, policy: ShrinkingWindow, capacity: int, evict_batch: int, num_layers: int
    ) -> None:
        self._policy = policy
        self.capacity = capacity
        self.sinks = policy.sinks
        self.positions = policy.positions
        self.evict_batch = evict_batch
        total = capacity * (policy.growing_heads + policy.window_heads)
        history_capacity = (total - policy.least * policy.window_heads) // policy.growing_heads
        self.steady_from = history_capacity + 1
        self.patterns = (0,) * num_layers

    def limit(self, num_seen: int) -> int:
        """Return what the history leaves to a window, from `least` to the capacity."""
        policy = self._policy
        total = self.capacity * (policy.growing_heads + policy.window_heads)
        left = total - policy.growing_heads * num_seen
        return min(self.capacity, max(policy.least, left // policy.window_heads))

    def start(self) -> State:
        """Return the state of an empty cache."""
        return State(0, 0, self.sinks)

    def room(self, state: State) -> int:
        """Return how many tokens fit before the next compaction; 0 where it is due."""
        if self.is_full(state):
            return 0
        beyond = state.num_seen - self.capacity
        return -beyond if beyond < 0 else self.evict_batch - beyond % self.evict_batch

    def compact(self, state: State) -> State:
        """Return the state in which the next batch of tokens fits."""
        batch = self.evict_batch
        return state._replace(num_cached=self.limit(state.num_seen + batch) - batch)

    def evicted_slots(self, state: State, pattern: int) -> SlotRanges:
        """Return the oldest slots after the sinks."""
        freed = state.num_cached - self.compact(state).num_cached
        return [(self.sinks, self.sinks + freed)]
