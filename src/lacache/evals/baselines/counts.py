"""How many tokens each layer of a scored cache holds, by counts alone. Integers only."""

from dataclasses import dataclass
from typing import final

from lacache.core.checks import check_int
from lacache.core.errors import ConfigError


@final
@dataclass(frozen=True)
class Counts:
    """A capacity for each layer; all compact at the same moments.

    Whenever some layer is full, every layer is cut down to its own capacity minus `refill`. So a
    new segment is `refill` tokens long at any depth, and with equal capacities the counts are
    those of `SinkWindow` with that refill.

    Args:
        capacities: most tokens that each layer ever holds.
        refill: slots that a compaction frees in a full layer.

    Raises:
        ConfigError: a value out of range.
    """

    capacities: tuple[int, ...]
    refill: int

    def __post_init__(self) -> None:
        check_int("refill", self.refill, 1)
        if not self.capacities:
            raise ConfigError("capacities=() must name at least one layer; try (512,)")
        for capacity in self.capacities:
            check_int("capacity", capacity, 1)
        least = min(self.capacities)
        if least <= self.refill:
            remedy = f"refill={max(1, least // 8)}" if least > 1 else f"capacity={2 * self.refill}"
            raise ConfigError(
                f"refill={self.refill} must be below the smallest capacity {least}; try {remedy}"
            )

    def start(self) -> tuple[int, ...]:
        """Tokens that each layer of an empty cache holds."""
        return (0,) * len(self.capacities)

    def room(self, held: tuple[int, ...]) -> int:
        """How many tokens fit in before some layer is full."""
        return min(c - n for c, n in zip(self.capacities, held, strict=True))

    def settle(self, held: tuple[int, ...]) -> tuple[int, ...]:
        """What the next token finds: after the compaction, if one is due."""
        if self.room(held) > 0:
            return held
        return tuple(min(n, c - self.refill) for c, n in zip(self.capacities, held, strict=True))

    def after(self, num_seen: int) -> tuple[int, ...]:
        """What each layer holds after `num_seen` tokens, in constant time."""
        first = min(self.capacities)
        if num_seen <= first:
            return (num_seen,) * len(self.capacities)
        # The last compaction ran before the token with this number, which some layer had no
        # room for.
        last = first + (num_seen - first - 1) // self.refill * self.refill
        return tuple(min(last, c - self.refill) + num_seen - last for c in self.capacities)
