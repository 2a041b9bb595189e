"""Random ladders that work, with the depth they work for."""

from hypothesis import strategies as st

from lacache.errors import ConfigError
from lacache.policies import Ladder


@st.composite
def ladders(draw: st.DrawFn, most_capacity: int = 60) -> tuple[Ladder, int]:
    while True:
        num_layers = draw(st.integers(2, 34))
        span = draw(st.integers(1, num_layers - 1))
        try:
            config = Ladder(
                capacity=draw(st.integers(2, most_capacity)),
                span=span,
                overlap=draw(st.integers(0, span - 1)),
                sinks=draw(st.integers(0, 6)),
                recent=draw(st.one_of(st.none(), st.integers(0, 20))),
                evict_batch=draw(st.sampled_from([1, 2, 7, 1000])),
                geometry=draw(st.sampled_from(["interleaved", "consecutive"])),
                unit=draw(st.sampled_from([1, 1, 2, 3])),
                window_layers=draw(st.sampled_from([(), (0,), (0, 1)])),
            )
            config.bind(num_layers)
        except ConfigError:
            continue
        return config, num_layers
