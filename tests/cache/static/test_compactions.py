"""Tables of compactions against plain loops."""

from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lacache.cache.static.compactions import Compactions
from lacache.policies import Ladder
from lacache.policies.schedule import Schedule
from tests.cache.static.policy_strategies import schedules


@given(schedules(), st.integers(1, 40))
@settings(max_examples=100)
def test_tables_of_compactions_are_what_is_not_dropped(schedule: Schedule, rounds: int) -> None:
    compactions = Compactions(schedule)
    state = schedule.start().insert(schedule.room(schedule.start()))
    for _ in range(rounds):
        found = compactions.surviving(state)
        for row, pattern in enumerate(sorted(set(schedule.patterns))):
            kept = list(range(state.num_cached))
            for start, stop in schedule.evicted_slots(state, pattern):
                for slot in range(start, stop):
                    kept.remove(slot)
            assert found[row].tolist() == kept
        state = schedule.compact(state)
        assert found.shape[1] == state.num_cached
        state = state.insert(schedule.room(state))


def test_tables_that_come_again_are_made_once() -> None:
    schedule = Ladder(span=2, sinks=2, evict_batch=3).schedule(5, 24)
    compactions = Compactions(schedule)
    made: dict[tuple[int, int], Tensor] = {}
    state = schedule.start().insert(schedule.capacity)
    for _ in range(200):
        table = compactions.surviving(state)
        assert made.setdefault((state.num_cached, state.cursor), table) is table
        state = schedule.compact(state)
        state = state.insert(schedule.room(state))
    assert len(made) < 20
