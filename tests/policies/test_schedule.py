"""What the canonical schedule promises, on random ladders."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from lacache.policies import Full, KeptTokens, Ladder, State, Streaming, Timetable, kept_after
from lacache.policies.kept import KeptTable
from tests.policies.strategies import SizedLadder, ladders

LADDER = ladders()
SEEN = st.integers(0, 500)


@given(LADDER, SEEN, st.booleans())
@settings(max_examples=150, deadline=None)
def test_fast_equals_the_slow_reference(ladder: SizedLadder, num_seen: int, settled: bool) -> None:
    schedule = ladder.schedule()
    state, layers = ladder.slow(num_seen, settled=settled)
    kept = kept_after(schedule, num_seen)
    if settled:
        kept.settle()
    else:
        assert Timetable(schedule).state_at(num_seen) == state
    assert kept.state == state
    assert [kept.by_pattern[p] for p in schedule.patterns] == layers


@given(LADDER, SEEN)
@settings(max_examples=100, deadline=None)
def test_layers_hold_equally_many_tokens_in_order_within_the_capacity(
    ladder: SizedLadder, num_seen: int
) -> None:
    schedule = ladder.schedule()
    kept = KeptTokens(schedule)
    for _ in range(num_seen):
        kept.advance(1)
        for tokens in kept.by_pattern.values():
            assert len(tokens) == kept.state.num_cached <= ladder.capacity
    for tokens in kept.by_pattern.values():
        assert all(a < b for a, b in itertools.pairwise(tokens))
        assert tokens[: ladder.policy.sinks] == list(range(min(ladder.policy.sinks, num_seen)))
        newest = min(schedule.recent, num_seen)
        assert tokens[len(tokens) - newest :] == list(range(num_seen - newest, num_seen))


@given(LADDER, st.lists(st.integers(1, 40), max_size=12))
@settings(max_examples=100, deadline=None)
def test_chunks_do_not_matter(ladder: SizedLadder, chunks: list[int]) -> None:
    schedule = ladder.schedule()
    in_chunks, at_once = KeptTokens(schedule), KeptTokens(schedule)
    for chunk in chunks:
        in_chunks.advance(chunk)
    at_once.advance(sum(chunks))
    assert in_chunks.state == at_once.state
    assert in_chunks.by_pattern == at_once.by_pattern


@given(LADDER, st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_compactions_are_periodic(ladder: SizedLadder, periods: int) -> None:
    schedule = ladder.schedule()
    table = Timetable(schedule)
    start, length = table.period_start, table.period_tokens
    assert length > 0
    for offset in range(0, length, max(1, length // 7)):
        one = table.state_at(start.num_seen + offset)
        later = table.state_at(start.num_seen + offset + periods * length)
        assert later == one._replace(num_seen=one.num_seen + periods * length)


@given(LADDER)
@settings(max_examples=100, deadline=None)
def test_nothing_is_lost_up_to_the_capacity(ladder: SizedLadder) -> None:
    kept = kept_after(ladder.schedule(), ladder.capacity)
    assert all(tokens == list(range(ladder.capacity)) for tokens in kept.by_pattern.values())


@given(LADDER, st.integers(1, 400))
@settings(max_examples=100, deadline=None)
def test_every_pattern_loses_as_many_slots(ladder: SizedLadder, extra: int) -> None:
    schedule = ladder.schedule()
    full = Timetable(schedule).state_at(ladder.capacity + extra)
    full = State(full.num_seen, ladder.capacity, full.cursor)
    freed = full.num_cached - schedule.compact(full).num_cached
    assert freed >= 1
    for pattern in set(schedule.patterns):
        runs = schedule.evicted_slots(full, pattern)
        assert sum(stop - start for start, stop in runs) == freed
        assert all(
            ladder.policy.sinks <= a < b <= ladder.capacity - schedule.recent for a, b in runs
        )


@given(LADDER)
@settings(max_examples=100, deadline=None)
def test_every_compaction_frees_as_many_slots(ladder: SizedLadder) -> None:
    schedule = ladder.schedule()
    assert schedule.evict_batch >= 1
    full = Timetable(schedule).compactions
    assert {state.num_cached for state in full} == {ladder.capacity}
    freed = {state.num_cached - schedule.compact(state).num_cached for state in full}
    assert freed == {schedule.evict_batch}


@given(LADDER, st.lists(st.integers(0, 20_000), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_one_table_answers_for_any_numbers_of_tokens(ladder: SizedLadder, seen: list[int]) -> None:
    table, played = KeptTable(ladder.schedule()), KeptTokens(ladder.schedule())
    found = {num_seen: table.after(num_seen) for num_seen in seen}
    for num_seen in sorted(found):
        played.advance(num_seen - played.state.num_seen)
        kept = found[num_seen]
        assert kept.by_pattern == played.by_pattern
        assert (kept.state, kept.num_compactions) == (played.state, played.num_compactions)


@given(st.integers(1, 40), st.integers(0, 5), st.integers(1, 5), SEEN)
@settings(max_examples=100, deadline=None)
def test_streaming_keeps_sinks_and_the_newest(
    window: int, sinks: int, evict_batch: int, num_seen: int
) -> None:
    schedule = Streaming(sinks=sinks, evict_batch=evict_batch).schedule(
        3, sinks + evict_batch + window
    )
    kept = kept_after(schedule, num_seen)
    [tokens] = kept.by_pattern.values()
    num_newest = kept.state.num_cached - min(sinks, num_seen)
    assert tokens == [*range(min(sinks, num_seen)), *range(num_seen - num_newest, num_seen)]
    assert len(tokens) <= schedule.capacity
    assert Timetable(schedule).state_at(num_seen) == kept.state
    if num_seen >= schedule.capacity:
        assert len(tokens) > schedule.capacity - evict_batch


@given(SEEN)
def test_full_keeps_everything(num_seen: int) -> None:
    kept = kept_after(Full().schedule(4), num_seen)
    assert kept.by_pattern == {0: list(range(num_seen))}
    assert not kept.schedule.is_full(kept.state)


def test_a_long_schedule_is_planned_from_the_period() -> None:
    schedule = Ladder(span=16, recent=32, evict_batch=1).schedule(32, 4096)
    table = Timetable(schedule)
    fast = kept_after(schedule, 300_000)
    slow = KeptTokens(schedule)
    slow.advance(300_000)
    assert fast.by_pattern == slow.by_pattern
    assert fast.state == slow.state == table.state_at(300_000)
    assert table.state_at(10**12).num_cached == 4096
