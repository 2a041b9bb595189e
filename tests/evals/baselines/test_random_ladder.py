"""Random ladders follow the ladder in everything but which units stay."""

from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacache.errors import ConfigError
from lacache.evals.baselines import RandomLadder
from lacache.evals.baselines.random_ladder import UnitSchedule
from lacache.policies import KeptTokens, Ladder
from tests.policies.strategies import SizedLadder, ladders

LADDERS = ladders().filter(
    lambda sized: not sized.policy.window_layers and sized.policy.geometry == "interleaved"
)
SEEN = st.integers(0, 300)


def random_ladder(ladder: Ladder, seed: int) -> RandomLadder:
    settings = {f.name: getattr(ladder, f.name) for f in fields(RandomLadder) if f.name != "seed"}
    return RandomLadder(seed=seed, **settings)


@settings(max_examples=40)
@given(LADDERS, SEEN)
def test_the_ladders_own_units_make_it_the_ladder(sized: SizedLadder, num_seen: int) -> None:
    ladder = sized.schedule()
    shape = ladder.geometry
    units = [
        tuple(range(shape.phase(i), shape.phase(i) + shape.kept)) for i in range(sized.num_layers)
    ]
    ours, theirs = KeptTokens(UnitSchedule(ladder, units)), KeptTokens(ladder)
    for kept in (ours, theirs):
        kept.advance(num_seen)
    assert ours.state == theirs.state
    assert [ours.by_pattern[p] for p in ours.schedule.patterns] == [
        theirs.by_pattern[p] for p in ladder.patterns
    ]


@settings(max_examples=40)
@given(LADDERS, SEEN, st.integers(0, 5))
def test_counts_and_cursor_are_the_ladders(sized: SizedLadder, num_seen: int, seed: int) -> None:
    schedule = random_ladder(sized.policy, seed).schedule(sized.num_layers, sized.capacity)
    random, ladder = KeptTokens(schedule), KeptTokens(sized.schedule())
    for kept in (random, ladder):
        kept.advance(num_seen)
    assert random.state == ladder.state
    sinks, recent = sized.policy.sinks, sized.schedule().recent
    for tokens in random.by_pattern.values():
        assert len(tokens) == random.state.num_cached
        assert tokens == sorted(set(tokens))
        assert tokens[:sinks] == list(range(min(sinks, num_seen)))
        newest = min(recent, num_seen)
        assert tokens[len(tokens) - newest :] == list(range(num_seen - newest, num_seen))


def test_each_layer_keeps_the_same_units_of_every_band() -> None:
    policy = RandomLadder(seed=1, span=3, overlap=1, sinks=0, recent=0, unit=2, evict_batch=1000)
    schedule = policy.schedule(9, 100)
    band, kept = schedule._ladder.geometry.band, schedule._ladder.geometry.kept
    held = KeptTokens(schedule)
    held.advance(100)
    held.compact()
    whole = 100 // (2 * band)
    for pattern, tokens in held.by_pattern.items():
        first = {t // 2 for t in tokens if t < 2 * band}
        assert len(first) == kept
        wanted = [
            (j * band + u) * 2 + t for j in range(whole) for u in sorted(first) for t in range(2)
        ]
        assert tokens[: len(wanted)] == wanted, pattern


def test_a_seed_is_a_pattern() -> None:
    first, again, other = (
        RandomLadder(seed=s, span=10, overlap=8).schedule(30, 64)._distinct for s in (0, 0, 1)
    )
    assert first == again != other
    assert len(first) > 5


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="seed=-1"):
        RandomLadder(seed=-1)
    with pytest.raises(ConfigError, match="overlap=3 must be below span=2"):
        RandomLadder(span=2, overlap=3)
