"""Random groups over layers and KV heads."""

from hypothesis import strategies as st

from lacache.errors import ConfigError
from lacache.policies import (
    Full,
    Group,
    Groups,
    Ladder,
    LayerPolicy,
    ModelShape,
    ShrinkingWindow,
    Streaming,
)

Sized = tuple[LayerPolicy, int | None]
"""A policy and its capacity."""


@st.composite
def policies(draw: st.DrawFn, num_layers: int, evict_batch: int) -> Sized:
    """A policy that works over so many layers, with a capacity."""
    while True:
        kind = draw(st.sampled_from(["ladder", "ladder", "streaming", "shrinking", "full"]))
        sinks = draw(st.integers(0, 3))
        positions = draw(st.sampled_from(["original", "slots"]))
        if kind == "full":
            return Full(), None
        if kind == "shrinking":
            return draw(shrinking_windows(evict_batch))
        if kind == "streaming" or num_layers == 1:
            policy = Streaming(sinks=sinks, evict_batch=evict_batch, positions=positions)
            return policy, draw(st.integers(8, 20))
        span = draw(st.integers(1, num_layers - 1))
        try:
            ladder = Ladder(
                span=span,
                overlap=draw(st.integers(0, span - 1)),
                sinks=sinks,
                recent=draw(st.integers(0, 8)),
                evict_batch=evict_batch,
                unit=draw(st.sampled_from([1, 2])),
                positions=positions,
            )
            capacity = draw(st.integers(6, 30))
            ladder.schedule(num_layers, capacity)
        except ConfigError:
            continue
        return ladder, capacity


@st.composite
def shrinking_windows(
    draw: st.DrawFn, evict_batch: int | None = None
) -> tuple[ShrinkingWindow, int]:
    """Windows that shrink quickly enough for a short prompt to see the end of it."""
    sinks = draw(st.integers(0, 3))
    if evict_batch is None:
        evict_batch = draw(st.integers(1, 4))
    least = draw(st.integers(sinks + evict_batch, 16))
    window = ShrinkingWindow(
        least=least,
        growing_heads=draw(st.integers(1, 4)),
        window_heads=draw(st.integers(1, 6)),
        sinks=sinks,
        evict_batch=evict_batch,
    )
    return window, draw(st.integers(least, 30))


@st.composite
def groups(draw: st.DrawFn, num_layers: int, num_heads: int, *, by_head: bool = True) -> Groups:
    """Two or three groups; with `by_head` their members are single KV heads."""
    members: list[int | tuple[int, int]] = (
        [(layer, head) for layer in range(num_layers) for head in range(num_heads)]
        if by_head
        else list(range(num_layers))
    )
    members = draw(st.permutations(members))
    evict_batch = draw(st.integers(1, 4))
    edges = sorted(draw(st.sets(st.integers(1, len(members) - 1), min_size=1, max_size=2)))
    parts = [members[a:b] for a, b in zip([0, *edges], [*edges, None], strict=True)]
    while True:
        found = []
        for part in parts:
            depth = len({m[0] if isinstance(m, tuple) else m for m in part})
            policy, capacity = draw(policies(depth, evict_batch))
            found.append(Group(policy, tuple(part), capacity))
        try:
            Groups(tuple(found)).bind(ModelShape((num_heads,) * num_layers))
        except ConfigError:
            # One of them cannot free as many slots as the others have to.
            continue
        return Groups(tuple(found))
