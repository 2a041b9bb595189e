"""PyramidKV's budgets: fewer tokens the deeper the layer, at the same bytes in all."""

from itertools import pairwise


def pyramid(
    capacity: int, num_layers: int, *, window: int, beta: float, floor: int
) -> tuple[int, ...]:
    """Capacities that fall in a straight line from the first layer to the last.

    Source: arXiv 2406.02069 section 4: beside its window, the last layer keeps the share `1/beta`
    of the mean, and the first layer what makes up for that.

    Args:
        capacity: the mean.
        num_layers: layers with a growing cache.
        window: newest tokens that every layer keeps.
        beta: how steep.
        floor: what no layer goes below, as far as the mean allows.

    Returns:
        One capacity for each layer; their sum is `num_layers * capacity`.
    """
    if num_layers == 1:
        return (capacity,)
    least = max(window + int((capacity - window) / beta), floor)
    drop = 2 * max(0, capacity - least)
    greatest = capacity + drop // 2
    # Sums from the first layer on, in whole tokens, so that nothing is lost in the rounding.
    sums = [
        layer * greatest - drop * layer * (layer - 1) // (2 * (num_layers - 1))
        for layer in range(num_layers + 1)
    ]
    return tuple(after - before for before, after in pairwise(sums))
