"""PyramidKV's budgets: fewer tokens the deeper the layer, at the same bytes in all."""


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
    upper = [greatest - drop * layer // (num_layers - 1) for layer in range(num_layers // 2)]
    # The lower half mirrors the upper one, so that rounding to whole tokens adds up to nothing.
    lower = [2 * capacity - tokens for tokens in reversed(upper)]
    return (*upper, *[capacity] * (num_layers % 2), *lower)
