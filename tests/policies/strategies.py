"""Random ladders that work, with the depth and capacity that they work for."""

from typing import Any, NamedTuple

from hypothesis import strategies as st

from lacache.errors import ConfigError
from lacache.policies import Ladder, State
from lacache.policies.ladder import LadderSchedule
from lacache.policies.reference import reference_kept


class SizedLadder(NamedTuple):
    """A ladder with all its settings in slots, and the sizes that it works for."""

    policy: Ladder
    num_layers: int
    capacity: int

    def schedule(self) -> LadderSchedule:
        return self.policy.schedule(self.num_layers, self.capacity)

    def slow(self, num_seen: int, *, settled: bool) -> tuple[State, list[list[int]]]:
        """The reference, of which only the default of `recent` comes from the fast path."""
        policy: Any = self.policy
        return reference_kept(
            num_seen,
            settled=settled,
            num_layers=self.num_layers,
            capacity=self.capacity,
            span=policy.span,
            overlap=policy.overlap,
            sinks=policy.sinks,
            recent=self.schedule().recent if policy.recent is None else policy.recent,
            evict_batch=policy.evict_batch,
            geometry=policy.geometry,
            unit=policy.unit,
            window_layers=policy.window_layers,
        )


@st.composite
def ladders(draw: st.DrawFn, most_capacity: int = 60) -> SizedLadder:
    while True:
        num_layers = draw(st.integers(2, 34))
        span = draw(st.integers(1, num_layers - 1))
        try:
            ladder = SizedLadder(
                Ladder(
                    span=span,
                    overlap=draw(st.integers(0, span - 1)),
                    sinks=draw(st.integers(0, 6)),
                    recent=draw(st.one_of(st.none(), st.integers(0, 20))),
                    evict_batch=draw(st.sampled_from([1, 2, 7, 1000])),
                    geometry=draw(st.sampled_from(["interleaved", "consecutive"])),
                    unit=draw(st.sampled_from([1, 1, 2, 3])),
                    window_layers=draw(st.sampled_from([(), (0,), (0, 1)])),
                    positions=draw(st.sampled_from(["original", "slots"])),
                ),
                num_layers,
                draw(st.integers(2, most_capacity)),
            )
            ladder.schedule()
        except ConfigError:
            continue
        return ladder
