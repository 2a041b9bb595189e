from hypothesis import given
from hypothesis import strategies as st

from lacache.policies import KeptTokens, Ladder, kept_after
from lacache.policies.uniform import Uniform

LADDERS = [
    Ladder(capacity=40, span=3, sinks=2, evict_batch=6),
    Ladder(capacity=40, span=3, overlap=2, sinks=2, recent=10, geometry="consecutive"),
    Ladder(capacity=40, span=2, unit=3, sinks=1, recent=0),
]


@given(ladder=st.sampled_from(LADDERS), num_seen=st.integers(0, 400))
def test_all_layers_keep_what_one_layer_of_the_ladder_keeps(ladder: Ladder, num_seen: int) -> None:
    reference, uniform = ladder.bind(6), Uniform(ladder).bind(6)
    (pattern,) = set(uniform.patterns)
    assert len(uniform.patterns) == 6
    kept, expected = kept_after(uniform, num_seen), KeptTokens(reference)
    expected.read(num_seen)
    assert kept.state == expected.state
    assert kept.by_pattern == {pattern: expected.by_pattern[pattern]}


def test_it_needs_the_room_that_the_ladder_needs() -> None:
    for ladder in LADDERS:
        assert Uniform(ladder).smallest_capacity(6) == ladder.smallest_capacity(6)
