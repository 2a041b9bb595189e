"""Order heads by importance: give windows to more and more heads, where they cost least.

Heads stand in for each other, so the cost of a window depends on which other heads have one. Hence
rounds: measure every head that still sees all tokens, give windows to the cheapest share of them,
measure again.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, final

from lacache.errors import ConfigError

Pair = tuple[int, int]
"""A layer and one of its KV heads."""

Costs = Callable[[frozenset[Pair], Sequence[Pair]], list[float]]
"""A function of `(full, pairs)`: it returns the cost when the heads `full` see all tokens, and
then, for each of `pairs`, when that head has a window as well."""


@final
class Ranking(NamedTuple):
    """The result of pruning; `HeadProfile` documents each field."""

    importance: dict[Pair, float]
    order: list[Pair]
    loss_left: list[tuple[int, float]]


def round_sizes(count: int, share: float) -> Iterator[int]:
    """Yield how many heads still see all tokens, round by round.

    Raises:
        ConfigError: the share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share={share} must lie above 0 and be at most 1; try share=0.25")
    while count:
        yield count
        count -= max(1, int(share * count))


def prune(pairs: Sequence[Pair], costs: Costs, *, share: float) -> Ranking:
    """Order pairs by the importance of a long history for them.

    Args:
        pairs: every pair of the model.
        costs: measures the cost of windows.
        share: share of the remaining pairs that get a window after each round; one pair at least.

    Raises:
        ConfigError: the share is not in (0, 1].
    """
    kept = list(pairs)
    importance: dict[Pair, float] = {}
    windowed: list[Pair] = []
    loss_left: list[tuple[int, float]] = []
    sizes = [*round_sizes(len(kept), share), 0]
    for size, next_size in pairwise(sizes):
        base, *measured = costs(frozenset(kept), kept)
        cost = dict(zip(kept, measured, strict=True))
        if not importance:
            importance = {pair: cost[pair] - base for pair in kept}
        loss_left.append((size, base))
        # Ties go by depth, so that the same measurements give the same order.
        cheapest = sorted(kept, key=lambda pair: (cost[pair], pair))[: size - next_size]
        windowed += cheapest
        kept = [pair for pair in kept if pair not in cheapest]
    # With windows in all heads the loss is 1 by definition of the scale.
    return Ranking(importance, windowed[::-1], [(0, 1.0), *loss_left[::-1]])
