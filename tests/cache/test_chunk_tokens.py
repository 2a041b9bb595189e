"""What the queries of a chunk see, against plain lists of tokens."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lacache.cache.group_state import CompactionTables, GroupState
from lacache.policies.schedule import Schedule
from tests.cache.static.policy_strategies import schedules
from tests.cache.test_group_state import SlowGroup

Places = list[tuple[int, int]]
"""Token and position in each slot of a pattern."""


def begin(group: GroupState, slots: list[Places]) -> None:
    """Run a compaction that is due between chunks."""
    plan = group.begin(group.state.num_seen)
    if plan is None:
        return
    assert plan.moves is not None
    for pattern, slot, former in plan.moves.T.tolist():
        slots[pattern][slot] = slots[pattern][former]
    for mine, shifts in zip(slots, plan.shifts.tolist(), strict=True):
        del mine[plan.num_left :]
        mine[: len(shifts)] = [(sink, sink + shift) for sink, shift in enumerate(shifts)]


@given(
    schedule=schedules().filter(lambda schedule: schedule.positions == "original"),
    chunks=st.lists(st.integers(1, 60), min_size=1, max_size=4),
)
@settings(max_examples=150, deadline=None)
def test_queries_see_what_they_would_one_by_one(schedule: Schedule, chunks: list[int]) -> None:
    tables = CompactionTables(schedule)
    group, slow = GroupState(tables, moves_few=True), SlowGroup(schedule)
    slots: list[Places] = [[] for _ in tables.patterns]
    for length in chunks:
        first = group.state.num_seen
        begin(group, slots)
        tokens = group.pass_chunk(length)
        found: list[list[Places]] = []
        for pattern, mine in enumerate(slots):
            mine += [(first + n, first + n) for n in range(length)]
            moved = tokens.moved_sinks[pattern].shifts.tolist()
            keys = [(sink, sink + shift) for shifts in moved for sink, shift in enumerate(shifts)]
            keys = mine + keys
            table = tokens.visible(pattern, moves_sinks=True).tolist()
            assert all(keys[key][0] == mine[value][0] for key, value, _, _ in table)
            found.append([])
            for query in range(length):
                visible = [keys[key] for key, _, start, end in table if start <= query < end]
                found[-1].append(sorted(visible))
            left = {
                slot: mine[former + start]
                for pair, start in ((tokens.moved, 0), (tokens.added, tokens.num_before))
                for slot, former in zip(*pair(pattern).tolist(), strict=True)
            }
            mine[:] = [left.get(n, place) for n, place in enumerate(mine)][: tokens.num_left]
            if moved and schedule.sinks:
                mine[: schedule.sinks] = keys[-schedule.sinks :]
        for query in range(length):
            slow.forward(1, first + query, renumber=False)
            expected = zip(slow.column(0).tolist(), slow.positions().tolist(), strict=True)
            for pattern, (those, positions) in enumerate(expected):
                assert found[pattern][query] == list(zip(those, positions, strict=True))
        assert group.state == slow.state
        assert (group.origin, group.num_compactions) == (slow.origin, slow.num_compactions)
