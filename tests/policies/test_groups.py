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
    ShrinkingWindow,
    Streaming,
    mean_capacity,
)
from lacache.policies.schedule import UNBOUNDED
from tests.policies.group_strategies import groups

WINDOW = Streaming(10)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_every_head_is_in_one_group_with_the_schedule_of_its_depth(data: Any) -> None:
    plan = data.draw(groups(6, 3))
    bound = plan.bind_groups((3,) * 6)
    pairs = [
        (layer, head) for group in bound for layer, heads in group.heads.items() for head in heads
    ]
    assert sorted(pairs) == [(layer, head) for layer in range(6) for head in range(3)]
    for group, one in zip(plan.groups, bound, strict=True):
        depths = sorted({m[0] for m in group.members if isinstance(m, tuple)})
        schedule = group.policy.bind(len(depths))
        assert list(one.heads) == depths
        assert [one.pattern(layer) for layer in depths] == list(schedule.patterns)
        assert one.schedule.capacity == schedule.capacity


def test_one_policy_is_one_group() -> None:
    (group,) = Ladder(capacity=30, span=2).bind_groups((2, 2, 1, 2))
    assert group.heads == {0: (0, 1), 1: (0, 1), 2: (0,), 3: (0, 1)}
    assert group.num_heads == 7
    assert group.schedule.capacity == 30


def test_mean_capacity_weighs_by_heads() -> None:
    plan = Groups((Group(Streaming(100), (0, (1, 0))), Group(Streaming(10), ((1, 1), 2))))
    assert mean_capacity(plan.bind_groups((2, 2, 2))) == (3 * 100 + 3 * 10) / 6
    shrinking = ShrinkingWindow(100, 10, history_heads=1, window_heads=1)
    plan = Groups((Group(shrinking, (0,)), Group(Streaming(50), (1,))))
    assert mean_capacity(plan.bind_groups((1, 1))) == 75
    full = Groups((Group(Full(), (0,)), Group(WINDOW, (1,))))
    assert mean_capacity(full.bind_groups((2, 2))) == UNBOUNDED


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (((WINDOW, (0, 1)),), "KV head 0 of layer 2 is in no group; add 2"),
        (((WINDOW, (0, 1, 2)), (WINDOW, ((2, 1),))), "KV head 1 of layer 2 is in the groups 0 and"),
        (((WINDOW, (0, 1, 2, (2, 1))),), "KV head 1 of layer 2 is twice in group 0"),
        (((WINDOW, (0, 1, 2, 3)),), "layer 3 of a group must be below the number of layers 3"),
        (((WINDOW, (0, 1, (2, 2))),), "KV head 2 of layer 2 must be below the layer's 2 KV heads"),
        (((Ladder(capacity=40, span=2), (0, 1)), (WINDOW, (2,))), "span=2 must be below"),
    ],
)
def test_what_bind_refuses(plan: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Groups(tuple(Group(*group) for group in plan)).bind_groups((2, 2, 2))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Groups(()), "groups=() holds nothing"),
        (lambda: Groups((WINDOW,)), "each must be a Group"),  # type: ignore[arg-type]
        (lambda: Group(WINDOW, ()), "members=() leaves a group without layers"),
        (lambda: Group(WINDOW, "01"), "must be a sequence"),  # type: ignore[arg-type]
        (lambda: Group(WINDOW, (-1,)), "members=-1 must be at least 0"),
        (lambda: Group(WINDOW, ((1, 2, 3),)), "must be a layer (3) or a pair"),  # type: ignore
        (lambda: Group(512, (1,)), "must be a policy"),  # type: ignore[arg-type]
    ],
)
def test_what_the_constructors_refuse(make: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        make()
    assert message in str(raised.value)
