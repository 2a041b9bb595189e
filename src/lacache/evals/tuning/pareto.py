"""What is minimal in two objectives at once."""

import math
from collections.abc import Sequence

Point = tuple[float, float]
"""Two figures, both better when they are less."""


def front(points: Sequence[Point]) -> list[int]:
    """Which points no other beats: as good in both and better in one. By the first objective.

    Equal points do not beat each other.
    """
    found: list[int] = []
    least = math.inf
    for index in sorted(range(len(points)), key=points.__getitem__):
        if points[index][1] < least or (found and points[index] == points[found[-1]]):
            found.append(index)
            least = points[index][1]
    return found


def ranked(points: Sequence[Point]) -> list[int]:
    """All points, the best first.

    Those of the front come first, then the front of what is left, and so on; within one, by the
    sum of both ranks, which prefers what is good in both.
    """
    order: list[int] = []
    left = list(range(len(points)))
    while left:
        layer = {left[i] for i in front([points[i] for i in left])}
        order += sorted(layer, key=lambda i: (_rank_sum(points, i), i))
        left = [i for i in left if i not in layer]
    return order


def _rank_sum(points: Sequence[Point], index: int) -> int:
    mine = points[index]
    return sum(other[i] < mine[i] for other in points for i in (0, 1))
