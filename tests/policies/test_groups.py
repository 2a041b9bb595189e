"""Groups: every KV head in exactly one, and the errors otherwise."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacache.errors import ConfigError
from lacache.policies import (
    Full,
    Group,
    Groups,
    Ladder,
    ModelShape,
    RetrievalHeads,
    ShrinkingWindow,
    Streaming,
    mean_capacity,
)
from lacache.policies.schedule import UNBOUNDED
from tests.policies.group_strategies import groups
from tests.policies.slow_groups import compacted_together

WINDOW = Streaming(evict_batch=1)


def window(*members: Any) -> Group:
    return Group(WINDOW, members, 10)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_every_head_is_in_one_group_with_the_schedule_of_its_depth(data: Any) -> None:
    policy = data.draw(groups(6, 3))
    bound = policy.bind(ModelShape((3,) * 6))
    pairs = [
        (layer, head) for group in bound for layer, heads in group.heads.items() for head in heads
    ]
    assert sorted(pairs) == [(layer, head) for layer in range(6) for head in range(3)]
    together = compacted_together(policy)
    for group, one, (_, capacity, batch) in zip(policy.groups, bound, together, strict=True):
        depths = sorted({m[0] for m in group.members if isinstance(m, tuple)})
        size = UNBOUNDED if capacity is None else capacity
        alone = group.policy.schedule(len(depths), size)
        assert list(one.heads) == depths
        assert [one.pattern(layer) for layer in depths] == list(alone.patterns)
        assert one.schedule.capacity == size
        if len([g for g in bound if g.schedule.evict_batch]) > 1 and capacity is not None:
            assert one.schedule.evict_batch == batch
        else:
            assert one.schedule == alone


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_all_groups_are_compacted_at_the_same_tokens(data: Any) -> None:
    bound = data.draw(groups(6, 3)).bind(ModelShape((3,) * 6))
    schedules = [group.schedule for group in bound if group.schedule.evict_batch]
    moments = []
    for schedule in schedules:
        state, found = schedule.start(), set()
        for _ in range(200):
            if schedule.is_full(state):
                found.add(state.num_seen)
                state = schedule.compact(state)
            state = state.insert(1)
        moments.append(found)
    # Each begins when it is full; from then on all agree.
    for one, first in zip(moments, [schedule.capacity for schedule in schedules], strict=True):
        for other in moments:
            assert {n for n in other if n >= first} <= one


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            (Group(Streaming(evict_batch=4), (0,), 20), Group(Streaming(evict_batch=3), (1,), 20)),
            "evict_batch=4 of one group must be that of all groups, which are compacted together, "
            "and another has 3; try evict_batch=3 in all",
        ),
        (
            (
                Group(Ladder(span=1, recent=0, sinks=0, evict_batch=20), (0, 1, 2), 12),
                Group(Streaming(evict_batch=20), (3,), 40),
            ),
            "evict_batch=20 is more than the 8 slots that ladder:span=1:sinks=0:recent=0:"
            "evict_batch=20 can free at once with capacity=12",
        ),
    ],
)
def test_batches_that_groups_cannot_share_are_refused(
    parts: tuple[Group, ...], message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        Groups(parts).bind(ModelShape((1,) * 4 if len(parts[0].members) > 1 else (1, 1)))
    assert message in str(raised.value)


def test_shares_of_groups_become_the_smallest_batch_that_every_ladder_can_free() -> None:
    ladder = Group(Ladder(span=1), (0, 1, 2, 3), 500)
    window = Group(Streaming(evict_batch=0.2), (4,), 100)
    long, short = Groups((ladder, window)).bind(ModelShape((1,) * 5))
    # A fifth of 100 slots, in bands that free 3.
    assert long.schedule.evict_batch == short.schedule.evict_batch == 21
    assert (long.schedule.capacity, short.schedule.capacity) == (499, 100)


def test_one_policy_is_one_group() -> None:
    (group,) = Ladder(span=2).bind(ModelShape((2, 2, 1, 2)), 30)
    assert group.heads == {0: (0, 1), 1: (0, 1), 2: (0,), 3: (0, 1)}
    assert group.num_heads == 7
    assert group.schedule.capacity == 30


def test_mean_capacity_weighs_by_heads() -> None:
    def mean(*groups: Group, heads: int = 2) -> float:
        layers = max(m if isinstance(m, int) else m[0] for g in groups for m in g.members) + 1
        return mean_capacity(Groups(groups).bind(ModelShape((heads,) * layers)))

    long, short = Group(WINDOW, (0, (1, 0)), 100), Group(WINDOW, ((1, 1), 2), 10)
    assert mean(long, short) == (3 * 100 + 3 * 10) / 6
    shrinking = ShrinkingWindow(least=10, growing_heads=1, window_heads=1, evict_batch=1)
    assert mean(Group(shrinking, (0,), 100), Group(WINDOW, (1,), 50), heads=1) == 75
    assert mean(Group(Full(), (0,)), window(1)) == UNBOUNDED


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((window(0, 1),), "KV head 0 of layer 2 is in no group; add 2"),
        ((window(0, 1, 2), window((2, 1))), "KV head 1 of layer 2 is in the groups 0 and"),
        ((window(0, 1, 2, (2, 1)),), "KV head 1 of layer 2 is twice in group 0"),
        ((window(0, 1, 2, 3),), "layer 3 of a group must be below the number of layers 3"),
        ((window(0, 1, (2, 2)),), "KV head 2 of layer 2 must be below the layer's 2 KV heads"),
        ((Group(Ladder(span=2), (0, 1), 40), window(2)), "span=2 must be below"),
    ],
)
def test_what_bind_refuses(parts: tuple[Group, ...], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Groups(parts).bind(ModelShape((2, 2, 2)))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Groups(()), "groups=() holds nothing"),
        (lambda: Groups((WINDOW,)), "each must be a Group"),  # type: ignore[arg-type]
        (lambda: Group(WINDOW, (), 10), "members=() leaves a group without layers"),
        (lambda: Group(WINDOW, "01", 10), "must be a sequence"),  # type: ignore[arg-type]
        (lambda: Group(WINDOW, (-1,), 10), "members=-1 must be at least 0"),
        (lambda: Group(WINDOW, ((1, 2, 3),), 10), "must be a layer (3) or a pair"),  # type: ignore
        (lambda: Group(WINDOW, (1,)), "needs a capacity in tokens"),
        (lambda: Group(WINDOW, (1,), 0), "capacity=0 must be at least 1"),
        (lambda: Group(Full(), (1,), 9), "capacity=9 cannot be given with policy full"),
        (lambda: Group(RetrievalHeads(share=0.1), (1,), 9), "must be a policy of whole layers"),  # type: ignore
        (lambda: Group(512, (1,)), "must be a policy"),  # type: ignore[arg-type]
    ],
)
def test_what_the_constructors_refuse(make: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        make()
    assert message in str(raised.value)
