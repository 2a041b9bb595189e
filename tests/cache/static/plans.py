"""Random plans of bounded size."""

from hypothesis import strategies as st

from lacache.errors import ConfigError
from lacache.policies import Full, Groups, Ladder, Plan, RetrievalHeads, Streaming
from lacache.policies.presets import PRESETS, preset_plan
from lacache.policies.schedule import Schedule
from tests.policies import strategies
from tests.policies.group_strategies import groups, shrinking_windows

KINDS = ("ladder", "window", "shrinking", "layers", "heads", "history", "preset")


@st.composite
def ladders(draw: st.DrawFn, num_layers: int) -> Ladder:
    while True:
        span = draw(st.integers(1, num_layers - 1))
        try:
            config = Ladder(
                capacity=draw(st.integers(6, 30)),
                span=span,
                overlap=draw(st.integers(0, span - 1)),
                sinks=draw(st.integers(0, 4)),
                recent=draw(st.integers(0, 8)),
                evict_batch=draw(st.sampled_from([1, 3, 100])),
                geometry=draw(st.sampled_from(["interleaved", "consecutive"])),
                unit=draw(st.sampled_from([1, 2])),
                window_layers=draw(st.sampled_from([(), (0,), (1, num_layers - 1)])),
            )
            config.bind(num_layers)
        except ConfigError:
            continue
        return config


def bounded_groups(num_layers: int, num_heads: int, *, by_head: bool) -> st.SearchStrategy[Groups]:
    return groups(num_layers, num_heads, by_head=by_head).filter(
        lambda plan: not any(isinstance(group.policy, Full) for group in plan.groups)
    )


@st.composite
def histories(draw: st.DrawFn, num_layers: int, num_heads: int) -> RetrievalHeads:
    """A history and up to two tiers, of random heads."""
    pairs = [(layer, head) for layer in range(num_layers) for head in range(num_heads)]
    pairs = draw(st.permutations(pairs))
    edges = sorted(draw(st.sets(st.integers(1, len(pairs) - 1), min_size=1, max_size=3)))
    history, *tiers = (tuple(pairs[a:b]) for a, b in zip([0, *edges[:-1]], edges, strict=True))
    return RetrievalHeads(
        capacity=draw(st.integers(16, 24)),
        history=history,
        tiers=tuple(tiers),
        window=draw(st.sampled_from([0.3, 0.5, 0.7])),
        sinks=draw(st.integers(0, 2)),
        evict_batch=draw(st.integers(1, 2)),
        # One whole band must fit in a history of many layers.
        span=1 if len({layer for layer, _ in history}) > 1 else None,
        overlap=None,
        recent=draw(st.integers(0, 3)),
    )


@st.composite
def plans(draw: st.DrawFn, num_layers: int, num_heads: int) -> Plan:
    """Any plan that works over so many layers and bounds what it keeps."""
    kind = draw(st.sampled_from(KINDS))
    if kind == "ladder":
        return draw(ladders(num_layers))
    if kind == "window":
        return Streaming(draw(st.integers(6, 20)), draw(st.integers(0, 3)), evict_batch=2)
    if kind == "shrinking":
        return draw(shrinking_windows())
    if kind == "history":
        return draw(histories(num_layers, num_heads))
    if kind == "preset":
        name = draw(st.sampled_from(sorted(PRESETS)))
        return preset_plan(name, 32, (num_heads,) * num_layers, None, sinks=2)
    return draw(bounded_groups(num_layers, num_heads, by_head=kind == "heads"))


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    if draw(st.booleans()):
        config, num_layers = draw(strategies.ladders())
        return config.bind(num_layers)
    bound = draw(plans(5, 2)).bind_groups((2,) * 5)
    return draw(st.sampled_from(bound)).schedule
