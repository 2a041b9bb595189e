"""Attribution: what a window in each KV head costs, from a few gradients.

Every KV head has a mixing coefficient `a` in [0, 1] and attends with `a * full + (1 - a) * window`.
On the straight path from all 1 to all 0, the loss changes by the integral of its derivatives. So
their mean at a few points of the path splits what windows in all heads cost among the heads:
Aumann-Shapley values, as in integrated gradients (arXiv 1703.01365). docs/adr/0025-attribution.md
compares this with other measures.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Pair = tuple[int, int]
"""A layer and one of its KV heads."""

POINTS = (0.789, 0.211)
"""Coefficients on the path: the two points of Gauss and Legendre, exact for a loss of degree 4."""


def attributions(gradient: Callable[[float], Tensor], points: Sequence[float] = POINTS) -> Tensor:
    """Return what a window in each head costs.

    Args:
        gradient: returns the derivatives of a loss [L, H] where all coefficients have one value.
        points: values of the coefficients at which to take it.

    Returns:
        Costs [L, H]. Their sum is close to the loss with windows in all heads less the loss with
        none.
    """
    return torch.stack([-gradient(point) for point in points]).mean(0)


def rank(importance: Tensor, num_heads: Sequence[int]) -> list[Pair]:
    """Return every pair of layer and KV head, the most important first.

    Args:
        importance: [L, H], H the most KV heads of any layer.
        num_heads: KV heads of each layer.
    """
    pairs = [(layer, head) for layer, n in enumerate(num_heads) for head in range(n)]
    # Ties go by depth, so that the same measurements give the same order.
    return sorted(pairs, key=lambda pair: (-float(importance[pair]), pair))
