"""Token counts of each layer of a scored cache, in integers."""

from typing import final

from lacache.common.validation import validate_int
from lacache.errors import ConfigError


@final
class TokenCounts:
    """The tokens seen and the tokens that each layer holds. Mutable; shared by the layers.

    Whenever some layer is full, every layer is cut down to its own capacity minus `evict_batch`. So
    a new chunk is `evict_batch` tokens long at any depth, and with equal capacities the counts
    are those of `Streaming` with that evict_batch.

    Args:
        capacities: most tokens that each layer ever holds.
        evict_batch: slots that a compaction frees in a full layer.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(self, capacities: tuple[int, ...], evict_batch: int) -> None:
        validate_int("evict_batch", evict_batch, 1)
        if not capacities:
            raise ConfigError("capacities=() must name at least one layer; try (512,)")
        for capacity in capacities:
            validate_int("capacity", capacity, 1)
        least = min(capacities)
        if least <= evict_batch:
            remedy = f"evict_batch={max(1, least // 8)}"
            if least == 1:
                remedy = f"capacity={2 * evict_batch}"
            raise ConfigError(
                f"evict_batch={evict_batch} must be below the smallest capacity {least}; "
                f"try {remedy}"
            )
        self.capacities = capacities
        self._evict_batch = evict_batch
        self.clear()

    def clear(self) -> None:
        """Return to an empty cache."""
        self.held = (0,) * len(self.capacities)
        self.num_seen = 0
        self.compactions = 0
        self.dense_tokens = 0
        """Length of a first input that is prefilled with a full cache; 0 for none."""

    @property
    def is_dense(self) -> bool:
        """Whether the next token belongs to an input that is prefilled with a full cache."""
        return self.num_seen < self.dense_tokens

    def settled(self) -> tuple[int, ...]:
        """Return what each layer holds as the next token finds it: after a compaction, if due."""
        if self.is_dense or self._free(self.held) > 0:
            return self.held
        return tuple(
            min(n, c - self._evict_batch) for c, n in zip(self.capacities, self.held, strict=True)
        )

    def room(self) -> int:
        """Return how many tokens the next forward can bring without a compaction inside it."""
        return self.dense_tokens - self.num_seen if self.is_dense else self._free(self.settled())

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
            whole, self.held = self.held, self.after(self.num_seen)
            self.compactions += whole != self.held

    def after(self, num_seen: int) -> tuple[int, ...]:
        """Return what each layer holds after `num_seen` tokens, in constant time."""
        first, batch = min(self.capacities), self._evict_batch
        if num_seen <= first:
            return (num_seen,) * len(self.capacities)
        # The last compaction ran before the token with this number, which some layer had no
        # room for.
        last = first + (num_seen - first - 1) // batch * batch
        return tuple(min(last, c - batch) + num_seen - last for c in self.capacities)

    def _free(self, held: tuple[int, ...]) -> int:
        """Return how many tokens fit in before some layer is full."""
        return min(c - n for c, n in zip(self.capacities, held, strict=True))
