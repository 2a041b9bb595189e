"""Random policies of bounded size."""

from hypothesis import assume
from hypothesis import strategies as st

from lacache.errors import ConfigError
from lacache.policies import (
    Full,
    Groups,
    Ladder,
    RetrievalHeads,
    Schedule,
    Streaming,
    parse_policy,
)
from tests.policies import strategies
from tests.policies.group_strategies import groups, shrinking_windows
from tests.policies.sized import Sized, bind

POSITIONS = st.sampled_from(["original", "slots"])
KINDS = ("ladder", "window", "shrinking", "layers", "heads", "history", "named")
NAMED = ("balanced", "recall", "paper")


@st.composite
def ladders(draw: st.DrawFn, num_layers: int) -> tuple[int, Ladder]:
    while True:
        span = draw(st.integers(1, num_layers - 1))
        try:
            config = (
                draw(st.integers(6, 30)),
                Ladder(
                    span=span,
                    overlap=draw(st.integers(0, span - 1)),
                    sinks=draw(st.integers(0, 4)),
                    recent=draw(st.integers(0, 8)),
                    evict_batch=draw(st.sampled_from([1, 3, 100])),
                    geometry=draw(st.sampled_from(["interleaved", "consecutive"])),
                    unit=draw(st.sampled_from([1, 2])),
                    window_layers=draw(st.sampled_from([(), (0,), (1, num_layers - 1)])),
                    positions=draw(POSITIONS),
                ),
            )
            config[1].schedule(num_layers, config[0])
        except ConfigError:
            continue
        return config


def bounded_groups(num_layers: int, num_heads: int, *, by_head: bool) -> st.SearchStrategy[Groups]:
    return groups(num_layers, num_heads, by_head=by_head).filter(
        lambda found: not any(isinstance(group.policy, Full) for group in found.groups)
    )


@st.composite
def histories(draw: st.DrawFn, num_layers: int, num_heads: int) -> tuple[int, RetrievalHeads]:
    """A history and up to two tiers, of random heads."""
    pairs = [(layer, head) for layer in range(num_layers) for head in range(num_heads)]
    pairs = draw(st.permutations(pairs))
    edges = sorted(draw(st.sets(st.integers(1, len(pairs) - 1), min_size=1, max_size=3)))
    history, *tiers = (tuple(pairs[a:b]) for a, b in zip([0, *edges[:-1]], edges, strict=True))
    sized = (
        draw(st.integers(16, 24)),
        RetrievalHeads(
            heads=(history, *tuple(tiers)),
            window=draw(st.sampled_from([0.3, 0.5, 0.7])),
            sinks=draw(st.integers(0, 2)),
            evict_batch=draw(st.integers(1, 2)),
            span=1 if len({layer for layer, _ in history}) > 1 else None,
            overlap=None,
            recent=draw(st.integers(0, 3)),
            positions=draw(POSITIONS),
        ),
    )
    try:
        bind(sized, (num_heads,) * num_layers)
    except ConfigError:
        # A small window or history cannot free as many slots as the other has to.
        assume(False)
    return sized


@st.composite
def sized_policies(draw: st.DrawFn, num_layers: int, num_heads: int) -> Sized:
    """Any policy that works over so many layers and bounds what it keeps, with its budget."""
    kind = draw(st.sampled_from(KINDS))
    if kind == "ladder":
        return draw(ladders(num_layers))
    if kind == "window":
        sinks, positions = draw(st.integers(0, 3)), draw(POSITIONS)
        return draw(st.integers(6, 20)), Streaming(sinks=sinks, evict_batch=2, positions=positions)
    if kind == "shrinking":
        window, capacity = draw(shrinking_windows())
        return capacity, window
    if kind == "history":
        return draw(histories(num_layers, num_heads))
    if kind == "named":
        return 32, parse_policy(draw(st.sampled_from(NAMED))).with_sinks(2)
    return None, draw(bounded_groups(num_layers, num_heads, by_head=kind == "heads"))


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    if draw(st.booleans()):
        return draw(strategies.ladders()).schedule()
    groups = bind(draw(sized_policies(5, 2)), (2,) * 5).groups
    return draw(st.sampled_from(groups)).schedule
