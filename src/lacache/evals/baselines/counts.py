"""Token counts of each layer of a scored cache, in integers."""

from dataclasses import dataclass
from typing import final

from lacache.common.validation import validate_int
from lacache.errors import ConfigError


@final
@dataclass(frozen=True)
class Counts:
    """A capacity for each layer; all compact at the same moments.

    Whenever some layer is full, every layer is cut down to its own capacity minus `evict_batch`. So
    a new chunk is `evict_batch` tokens long at any depth, and with equal capacities the counts
    are those of `Streaming` with that evict_batch.

    Args:
        capacities: most tokens that each layer ever holds.
        evict_batch: slots that a compaction frees in a full layer.

    Raises:
        ConfigError: a value out of range.
    """

    capacities: tuple[int, ...]
    evict_batch: int

    def __post_init__(self) -> None:
        validate_int("evict_batch", self.evict_batch, 1)
        if not self.capacities:
            raise ConfigError("capacities=() must name at least one layer; try (512,)")
        for capacity in self.capacities:
            validate_int("capacity", capacity, 1)
        least = min(self.capacities)
        if least <= self.evict_batch:
            remedy = (
                f"evict_batch={max(1, least // 8)}"
                if least > 1
                else f"capacity={2 * self.evict_batch}"
            )
            raise ConfigError(
                f"evict_batch={self.evict_batch} must be below the smallest capacity {least}; "
                f"try {remedy}"
            )

    def start(self) -> tuple[int, ...]:
        """Return the tokens that each layer of an empty cache holds."""
        return (0,) * len(self.capacities)

    def room(self, held: tuple[int, ...]) -> int:
        """Return how many tokens fit in before some layer is full."""
        return min(c - n for c, n in zip(self.capacities, held, strict=True))

    def settle(self, held: tuple[int, ...]) -> tuple[int, ...]:
        """Return what the next token finds: after the compaction, if one is due."""
        if self.room(held) > 0:
            return held
        return tuple(
            min(n, c - self.evict_batch) for c, n in zip(self.capacities, held, strict=True)
        )

    def after(self, num_seen: int) -> tuple[int, ...]:
        """Return what each layer holds after `num_seen` tokens, in constant time."""
        first = min(self.capacities)
        if num_seen <= first:
            return (num_seen,) * len(self.capacities)
        # The last compaction ran before the token with this number, which some layer had no
        # room for.
        last = first + (num_seen - first - 1) // self.evict_batch * self.evict_batch
        return tuple(min(last, c - self.evict_batch) + num_seen - last for c in self.capacities)


@final
class TokenCounts:
    """The tokens seen and the tokens that each layer holds. Mutable; shared by the layers."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts
        self.clear()

    def clear(self) -> None:
        """Return to an empty cache."""
        self.held = self.counts.start()
        self.num_seen = 0
        self.compactions = 0
        self.dense_tokens = 0
        """Length of a first input that is prefilled with a full cache; 0 for none."""

    @property
    def is_dense(self) -> bool:
        """Whether the next token belongs to an input that is prefilled with a full cache."""
        return self.num_seen < self.dense_tokens

    def settled(self) -> tuple[int, ...]:
        """Return what each layer holds as the next token finds it."""
        return self.held if self.is_dense else self.counts.settle(self.held)

    def room(self) -> int:
        """Return how many tokens the next forward can bring without a compaction inside it."""
        if self.is_dense:
            return self.dense_tokens - self.num_seen
        return self.counts.room(self.settled())

    def settle(self) -> None:
        """Count the compaction that is due, if one is."""
        settled = self.settled()
        self.compactions += settled != self.held
        self.held = settled

    def insert(self, num_new: int) -> None:
        """Count new tokens that fit; after a dense input, cut to what chunks would leave."""
        was_dense = self.is_dense
        self.num_seen += num_new
        self.held = tuple(n + num_new for n in self.held)
        if was_dense and not self.is_dense:
            read, self.held = self.held, self.counts.after(self.num_seen)
            self.compactions += read != self.held
