"""The slow, obvious twin of groups that are compacted together."""

from typing import Any

from lacache.policies import Full, Groups, Ladder, ShrinkingWindow, Streaming

Evicting = Ladder | ShrinkingWindow | Streaming


def compacted_together(groups: Groups) -> list[tuple[Any, int | None, int]]:
    """Per group its policy, capacity and evict batch; evict batches are given in slots.

    The batch is the one that all groups give, or the next number that every ladder can free. A
    capacity is the largest with which the group is full when the smallest one is compacted.
    """
    bounded = [group for group in groups.groups if not isinstance(group.policy, Full)]
    if len(bounded) < 2:
        return [(g.policy, g.capacity, getattr(g.policy, "evict_batch", 0)) for g in groups.groups]
    depths = {id(g): len({m if isinstance(m, int) else m[0] for m in g.members}) for g in bounded}
    [batch] = {int(g.policy.evict_batch) for g in bounded if isinstance(g.policy, Evicting)}
    while any(batch % unit(g.policy, depths[id(g)]) for g in bounded):
        batch += 1
    first = min(g.capacity or 0 for g in bounded)
    found: list[tuple[Any, int | None, int]] = []
    for group in groups.groups:
        capacity = group.capacity
        while capacity is not None and (capacity - first) % batch:
            capacity -= 1
        found.append((group.policy, capacity, batch))
    return found


def unit(policy: Any, depth: int) -> int:
    """Slots that one band frees: those of its units that a layer does not keep."""
    if not isinstance(policy, Ladder):
        return 1
    return (band(policy, depth) - kept(policy, depth)) * policy.unit


def band(policy: Any, depth: int) -> int:
    step, units = policy.span - (policy.overlap or 0), 1
    while (units - 1) * step < depth - policy.span:
        units += 1
    return units


def kept(policy: Any, depth: int) -> int:
    step, units = policy.span - (policy.overlap or 0), 1
    while units * step < policy.span and units < band(policy, depth):
        units += 1
    return units
