"""Named policies work for any model and budget."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacache.errors import ConfigError
from lacache.policies import (
    BudgetLike,
    HeadProfile,
    Ladder,
    ModelShape,
    Paper,
    Streaming,
    bind_policy,
    kept_after,
    mean_capacity,
    parse_policy,
)
from lacache.policies.bind import BoundPolicy

HEADS = (2,) * 12
PAIRS = tuple((layer, head) for layer in range(12) for head in range(2))
PROFILE = HeadProfile(
    fingerprint="a-b",
    model="tiny",
    window=16,
    sinks=4,
    importance=((0.0, 0.0),) * 12,
    order=PAIRS[7:] + PAIRS[:7],
    loss_left=((0, 1.0), (2, 0.5), (4, 0.1)),
)
NAMES = ("balanced", "recall", "paper")


def bind(
    text: str,
    budget: BudgetLike | None,
    profile: HeadProfile | None = PROFILE,
    *,
    heads: tuple[int, ...] = HEADS,
    bytes_per_token: int = 8,
    prompt_tokens: int = 1,
) -> BoundPolicy:
    return bind_policy(
        parse_policy(text),
        budget,
        ModelShape(heads, profile),
        bytes_per_token=bytes_per_token,
        prompt_tokens=prompt_tokens,
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("profile", [None, PROFILE])
@given(more=st.integers(0, 700), num_layers=st.integers(2, 40), sinks=st.integers(1, 20))
@settings(max_examples=20, deadline=None)
def test_every_named_policy_works_from_its_smallest_budget_on(
    name: str, profile: HeadProfile | None, more: int, num_layers: int, sinks: int
) -> None:
    heads = (2,) * num_layers if profile is None else HEADS
    text = f"{name}:sinks={sinks}"
    with pytest.raises(ConfigError, match=r"budget=1 must be at least \d+ tokens") as raised:
        bind(text, 1, profile, heads=heads)
    smallest = int(str(raised.value).split("at least ")[1].split()[0])
    capacity = smallest + more
    groups = bind(text, capacity, profile, heads=heads).groups
    assert mean_capacity(groups) == capacity
    in_the_end = sum(group.schedule.final_capacity * group.num_heads for group in groups)
    assert 0.85 * capacity - 2 <= in_the_end / sum(heads) <= capacity
    for group in groups:
        assert kept_after(group.schedule, 3 * capacity).state.num_seen == 3 * capacity


@pytest.mark.parametrize("name", ["balanced", "recall"])
def test_a_profile_chooses_the_retrieval_heads(name: str) -> None:
    def history(text: str) -> set[tuple[int, int]]:
        heads = bind(text, 512).groups[0].heads
        return {(layer, head) for layer, of_layer in heads.items() for head in of_layer}

    # The fewest that leave half.
    assert history(name) == set(PROFILE.order[:2])
    assert history(f"{name}:share=0.25") == set(PROFILE.order[:6])


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_lost_before_the_budget_is_full(name: str) -> None:
    for profile in (PROFILE, None):
        for group in bind(name, 512, profile).groups:
            kept = kept_after(group.schedule, 512)
            assert all(tokens == list(range(512)) for tokens in kept.by_pattern.values())


def test_without_a_profile_only_recall_guesses() -> None:
    (group,) = bind("balanced", 512, None).groups
    assert group.schedule == Ladder().schedule(12, 512)
    assert len(bind("recall", 512, None).groups) > 1


def test_paper_is_the_released_configuration() -> None:
    policy = Paper()
    assert policy.released_capacity(299, 32) == 300
    expected = Ladder(span=16, overlap=0, recent=32, evict_batch=1, positions="slots")
    assert policy.schedule(32, 300) == expected.schedule(32, 300)


@pytest.mark.parametrize("name", NAMES)
def test_explicit_groups_are_the_same_without_profile_and_budget(name: str) -> None:
    for profile in (PROFILE, None):
        bound = bind(name, 512, profile)
        explicit = str(bound.explicit())
        assert bind(explicit, None, None).groups == bound.groups
        assert parse_policy(explicit) == bound.explicit()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ladder:span=6", "ladder:span=6:overlap=0"),
        ("ladder:span=6", "ladder:span=6:evict_batch=64:recent=256"),
        ("paper", "ladder:span=6:overlap=0:recent=12:evict_batch=1:positions=slots"),
        ("recall:window=0.7:most=0.0", "retrieval:share=0.09:most=0.0"),
    ],
)
def test_equal_schedules_have_one_identity_however_they_are_written(one: str, other: str) -> None:
    assert bind(one, 512).groups[0].schedule == bind(other, 512).groups[0].schedule
    assert bind(one, 512).identity == bind(other, 512).identity
    assert bind(one, 512).identity != bind(one, 511).identity


@pytest.mark.parametrize("name", [*NAMES, "streaming", "uniform"])
def test_an_identity_is_a_policy_with_every_setting(name: str) -> None:
    for profile in (PROFILE, None):
        bound = bind(name, 512, profile)
        again = bind(bound.identity, None, None)
        ours = [(group.schedule, group.heads) for group in bound.groups]
        assert [(group.schedule, group.heads) for group in again.groups] == ours
        assert again.identity == bound.identity
        assert "evict_batch=0" not in bound.identity
        assert "sinks=4" in bound.identity


def test_budgets_of_each_kind() -> None:
    def capacity(budget: int | float | str, prompt: int) -> int:
        return bind("recall", budget, bytes_per_token=100, prompt_tokens=prompt).capacity

    assert capacity(500, 1) == capacity(500, 9999) == capacity("50000B", 1) == 500
    assert capacity(0.25, 2000) == 500


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("profile", [None, PROFILE])
@given(share=st.floats(0.01, 1.0), prompt=st.integers(1, 60))
@settings(max_examples=30, deadline=None)
def test_a_share_of_a_short_prompt_works(
    name: str, profile: HeadProfile | None, share: float, prompt: int
) -> None:
    bound = bind(name, share, profile, prompt_tokens=prompt)
    assert bound.capacity >= share * prompt


def test_one_layer_has_no_ladder() -> None:
    for name in ("ladder", "paper"):
        with pytest.raises(ConfigError, match="at least 2 layers"):
            bind(name, 64, None, heads=(2,))


@pytest.mark.parametrize("name", NAMES)
def test_what_no_capacity_can_mend_is_refused_at_once(name: str) -> None:
    with pytest.raises(ConfigError, match="sinks=-1 must be at least 0"):
        bind(f"{name}:sinks=-1", 64)


@pytest.mark.parametrize(
    ("text", "budget", "message"),
    [
        ("best", 512, "policy='best' must be one of balanced, recall"),
        ("recall", None, "no budget was given; try budget=512"),
        ("full", 512, "budget=512 cannot be given with policy 'full'"),
        ("groups:0-11@64@streaming", 512, "budget=512 cannot be given with policy 'groups:"),
        ("streaming:sinks=600", 512, "budget=512 must be at least 601 tokens"),
        ("streaming", "16B", "a budget of 16 bytes holds 2 tokens of 8 bytes"),
    ],
)
def test_what_is_refused(text: str, budget: BudgetLike | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bind(text, budget)


def test_pinned_tokens_are_at_least_the_sinks() -> None:
    for text in ("balanced", "ladder:span=3", "paper", "streaming", "groups:0-11@64@ladder"):
        policy = parse_policy(text).with_sinks(9)
        assert "sinks=9" in str(policy)
        assert policy.with_sinks(5) == policy
    assert str(parse_policy("full").with_sinks(9)) == "full"


def test_windows_are_never_narrower_than_what_was_measured() -> None:
    def narrowest(text: str, budget: int, profile: HeadProfile | None = PROFILE) -> int:
        return min(g.schedule.final_capacity for g in bind(text, budget, profile).groups)

    # The profile was measured with 4 sinks and a window of 16.
    assert narrowest("recall", 512) == 179
    assert narrowest("recall", 64) == 22
    assert narrowest("recall", 48) == 20
    assert narrowest("recall", 36) == 18
    assert narrowest("recall", 48, None) == 16


def test_a_late_loss_leaves_windows_their_heads() -> None:
    groups = bind("balanced", 512, replace(PROFILE, loss_left=((20, 0.9),))).groups
    assert groups[0].num_heads == round(0.6 * len(PAIRS))


def test_a_single_head_has_a_window() -> None:
    one = HeadProfile("a-b", "tiny", 16, 4, ((0.0,),), ((0, 0),), ())
    for text in ("balanced", "recall"):
        (group,) = bind(text, 512, one, heads=(1,)).groups
        assert group.schedule == Streaming().schedule(1, 512)
