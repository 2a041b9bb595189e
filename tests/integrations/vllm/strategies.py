"""Random policies of one head group and of several, bound to small models."""

from hypothesis import strategies as st

from lacache.errors import ConfigError
from lacache.policies import BoundGroup, ModelShape, parse_policy

POLICIES = (
    "retrieval:heads={heads}:window=0.5:evict_batch=4:sinks=2",
    "retrieval:heads={heads}:window=0.35:evict_batch=1:sinks=1",
    "retrieval:heads={heads}:window=0.8:evict_batch=6:sinks=0",
    "streaming:evict_batch=5",
    "ladder:span=1:overlap=0:evict_batch=3:sinks=1",
)
"""Policies with tiers of `heads`, in which some groups grow while others shrink, and others."""


@st.composite
def bound_groups(draw: st.DrawFn) -> tuple[BoundGroup, ...]:
    while True:
        layers, heads = draw(st.integers(2, 4)), draw(st.integers(1, 2))
        pairs = draw(st.permutations([(x, h) for x in range(layers) for h in range(heads)]))
        count = draw(st.integers(1, len(pairs) - 1))
        ends = sorted({count, draw(st.integers(count, len(pairs) - 1))})
        tiers = [pairs[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        named = "/".join("+".join(f"{x}.{h}" for x, h in sorted(tier)) for tier in tiers)
        text = draw(st.sampled_from(POLICIES)).format(heads=named)
        positions = draw(st.sampled_from(["original", "slots"]))
        capacity = draw(st.integers(24, 48))
        try:
            return parse_policy(f"{text}:positions={positions}").bind(
                ModelShape((heads,) * layers), capacity
            )
        except ConfigError:
            continue


def whole(groups: tuple[BoundGroup, ...]) -> dict[int, list[int]]:
    """Return all layers of a model and all KV heads of each."""
    num_layers = 1 + max(layer for group in groups for layer in group.heads)
    return {
        layer: sorted(head for group in groups for head in group.heads.get(layer, ()))
        for layer in range(num_layers)
    }
