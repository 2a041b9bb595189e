"""Random ladders follow the ladder in everything but which units stay."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacache.errors import ConfigError
from lacache.evals.baselines import RandomLadder
from lacache.evals.baselines.random_ladder import UnitSchedule
from lacache.policies import KeptTokens, Ladder
from tests.policies.strategies import ladders

LADDER = ladders().filter(lambda drawn: not drawn[0].window_layers)
SEEN = st.integers(0, 300)


@settings(max_examples=40)
@given(LADDER, SEEN)
def test_the_ladders_own_units_make_it_the_ladder(drawn: tuple[Ladder, int], num_seen: int) -> None:
    config, num_layers = drawn
    ladder = config.bind(num_layers)
    shape = ladder.geometry
    units = [tuple(range(shape.phase(i), shape.phase(i) + shape.kept)) for i in range(num_layers)]
    ours, theirs = KeptTokens(UnitSchedule(ladder, units)), KeptTokens(ladder)
    for kept in (ours, theirs):
        kept.read(num_seen)
    assert ours.state == theirs.state
    assert [ours.by_pattern[p] for p in ours.schedule.patterns] == [
        theirs.by_pattern[p] for p in ladder.patterns
    ]


@settings(max_examples=40)
@given(LADDER, SEEN, st.integers(0, 5))
def test_counts_and_cursor_are_the_ladders(
    drawn: tuple[Ladder, int], num_seen: int, seed: int
) -> None:
    config, num_layers = drawn
    random, ladder = (
        KeptTokens(policy.bind(num_layers)) for policy in (RandomLadder(config, seed), config)
    )
    for kept in (random, ladder):
        kept.read(num_seen)
    assert random.state == ladder.state
    sinks, recent = config.sinks, ladder.schedule.recent
    for tokens in random.by_pattern.values():
        assert len(tokens) == random.state.num_cached
        assert tokens == sorted(set(tokens))
        assert tokens[:sinks] == list(range(min(sinks, num_seen)))
        newest = min(recent, num_seen)
        assert tokens[len(tokens) - newest :] == list(range(num_seen - newest, num_seen))


def test_each_layer_keeps_the_same_units_of_every_band() -> None:
    config = Ladder(capacity=100, span=3, overlap=1, sinks=0, recent=0, unit=2, evict_batch=1000)
    schedule = RandomLadder(config, 1).bind(9)
    band, kept = schedule._ladder.geometry.band, schedule._ladder.geometry.kept
    held = KeptTokens(schedule)
    held.read(100)
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
    config = Ladder(capacity=64, span=10, overlap=8)
    first, again, other = (RandomLadder(config, s).bind(30)._distinct for s in (0, 0, 1))
    assert first == again != other
    assert len(first) > 5


def test_window_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match="window_layers"):
        RandomLadder(Ladder(capacity=64, span=2, window_layers=(0,)))
