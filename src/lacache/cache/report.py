"""The report of a cache: counts of tokens, and bytes."""

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
    """Counts of a cache in tokens of one sequence, and its bytes over all layers and sequences.

    Where KV heads hold different numbers of tokens, `num_cached` and `capacity` are means over
    layers and heads, rounded down, `num_evicted` is `num_seen - num_cached`, and `compactions` is
    the largest of any head group.
    """

    num_seen: int
    num_cached: int
    num_evicted: int
    capacity: int
    compactions: int
    bytes: int
    """Bytes allocated; in the engine for full capacity, however few tokens are held."""
    held_bytes: int
    """Bytes of the tokens held, of those allocated."""
    coverage: int
    """Distinct tokens that at least one layer still holds."""
    most_cached: int
    """Tokens in the layer or KV head that holds most."""


def make_report(
    groups: Sequence[BoundGroup],
    kept: Sequence[KeptTokens],
    *,
    compactions: int,
    num_bytes: int,
    held_bytes: int,
) -> CacheReport:
    """Return the report over all head groups.

    Args:
        groups: the bound policy's head groups.
        kept: the tokens that each group holds.
        compactions: the largest number of compactions of any group.
        num_bytes: bytes that are reserved over all layers and sequences.
        held_bytes: of these, the bytes of the tokens held.
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
        held_bytes=held_bytes,
        coverage=coverage(dict(enumerate(held))),
        most_cached=max(state.num_cached for state in states),
    )
