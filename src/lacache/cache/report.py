"""Where a cache stands, in numbers for people."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul
from typing import final

from lacache.policies import BoundGroup
from lacache.policies.groups import mean_capacity
from lacache.policies.kept import KeptTokens, coverage


@final
@dataclass(frozen=True)
class CacheReport:
    """Where a cache stands. Counts are tokens; `bytes` covers every layer and row.

    Where KV heads hold different numbers of tokens, `num_cached` and `capacity` are means over
    layers and heads, rounded down, `num_evicted` is what was seen less that mean, and `compactions`
    are those of the group with most.
    """

    num_seen: int
    num_cached: int
    num_evicted: int
    capacity: int
    compactions: int
    bytes: int
    coverage: int
    """Distinct tokens that at least one layer still holds."""
    most_cached: int
    """Tokens of the layer or KV head that holds most."""


def make_report(
    groups: Sequence[BoundGroup], kept: Sequence[KeptTokens], compactions: int, num_bytes: int
) -> CacheReport:
    """The report over all groups of a plan.

    Args:
        groups: of the plan.
        kept: what each of them holds.
        compactions: of the group with most.
        num_bytes: of every layer and row.
    """
    states = [each.state for each in kept]
    heads = [group.num_heads for group in groups]
    num_seen = states[0].num_seen
    num_cached = sum(map(mul, (state.num_cached for state in states), heads)) // sum(heads)
    held = [tokens for each in kept for tokens in each.by_pattern.values()]
    return CacheReport(
        num_seen=num_seen,
        num_cached=num_cached,
        num_evicted=num_seen - num_cached,
        capacity=int(mean_capacity(groups)),
        compactions=compactions,
        bytes=num_bytes,
        coverage=coverage(dict(enumerate(held))),
        most_cached=max(state.num_cached for state in states),
    )
