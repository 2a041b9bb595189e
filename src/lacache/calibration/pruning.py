"""From costs to an order: windows for more and more heads, where they cost least.

Heads stand in for each other, so what a window costs changes with what else has a window. Hence
rounds: measure every head that still sees everything, give windows to the cheapest share of them,
measure again.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, final

from lacache.errors import ConfigError

Pair = tuple[int, int]
"""A layer and one of its KV heads."""

Costs = Callable[[frozenset[Pair], Sequence[Pair]], list[float]]
"""Of `(keeping, pairs)`: the cost when the pairs `keeping` see everything, and then, for each of
`pairs`, when that one has a window as well."""


@final
class Ranking(NamedTuple):
    """Result of pruning; `HeadProfile` documents each field."""

    need: dict[Pair, float]
    order: list[Pair]
    left: list[tuple[int, float]]


def round_sizes(count: int, share: float) -> Iterator[int]:
    """How many heads still see everything, round by round.

    Raises:
        ConfigError: the share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share={share} must lie above 0 and be at most 1; try share=0.25")
    while count:
        yield count
        count -= max(1, int(share * count))


def prune(pairs: Sequence[Pair], costs: Costs, *, share: float) -> Ranking:
    """Order pairs by their need for history.

    Args:
        pairs: all there are.
        costs: measures.
        share: of the pairs left, how many get a window after each round; one at least.

    Raises:
        ConfigError: the share is not in (0, 1].
    """
    kept = list(pairs)
    need: dict[Pair, float] = {}
    freed: list[Pair] = []
    left: list[tuple[int, float]] = []
    sizes = [*round_sizes(len(kept), share), 0]
    for size, next_size in pairwise(sizes):
        base, *measured = costs(frozenset(kept), kept)
        cost = dict(zip(kept, measured, strict=True))
        if not need:
            need = {pair: cost[pair] - base for pair in kept}
        left.append((size, base))
        # Ties go by depth, so that the same measurements give the same order.
        cheapest = sorted(kept, key=lambda pair: (cost[pair], pair))[: size - next_size]
        freed += cheapest
        kept = [pair for pair in kept if pair not in cheapest]
    # At last all have a window, which is 1 by definition of the scale.
    return Ranking(need, freed[::-1], [(0, 1.0), *left[::-1]])
