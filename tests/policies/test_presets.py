"""Presets: plans that work for any model and budget."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lacache.policies.presets import PRESETS, preset_plan, preset_source

from lacache.errors import ConfigError
from lacache.policies import Ladder, RetrievalHeads, kept_after, mean_capacity
from lacache.policies.head_profile import HeadProfile

HEADS = (2,) * 12
PAIRS = tuple((layer, head) for layer in range(12) for head in range(2))
PROFILE = HeadProfile(
    fingerprint="a-b",
    model="tiny",
    window=16,
    sinks=4,
    importance=((0.0, 0.0),) * 12,
    order=PAIRS[7:] + PAIRS[:7],
    loss_left=(),
)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("profile", [None, PROFILE])
@given(more=st.integers(0, 700), num_layers=st.integers(2, 40), sinks=st.integers(1, 20))
@settings(max_examples=20, deadline=None)
def test_every_preset_works_from_its_smallest_budget_on(
    name: str, profile: HeadProfile | None, more: int, num_layers: int, sinks: int
) -> None:
    heads = (2,) * num_layers if profile is None else HEADS
    with pytest.raises(ConfigError, match=r"budget=1 must be at least \d+ tokens") as raised:
        preset_source(name, 1, num_heads=heads, bytes_per_token=8, profile=profile, sinks=sinks)
    smallest = int(str(raised.value).split("at least ")[1].split()[0])
    capacity = smallest + more
    source = preset_source(
        name, capacity, num_heads=heads, bytes_per_token=8, profile=profile, sinks=sinks
    )
    groups = source(1).bind_groups(heads)
    assert mean_capacity(groups) == capacity
    in_the_end = sum(group.schedule.final_capacity * group.num_heads for group in groups)
    assert 0.85 * capacity - 2 <= in_the_end / sum(heads) <= capacity
    for group in groups:
        assert kept_after(group.schedule, 3 * capacity).state.num_seen == 3 * capacity


@pytest.mark.parametrize("name", ["balanced", "local", "global"])
def test_a_profile_says_who_has_a_history(name: str) -> None:
    plan = preset_plan(name, 512, HEADS, PROFILE)
    assert isinstance(plan, RetrievalHeads)
    assert plan.history == PROFILE.order[: len(plan.history)]
    assert len(plan.history) == round(PRESETS[name].share * len(PAIRS))


@pytest.mark.parametrize("name", PRESETS)
def test_nothing_is_lost_before_the_budget_is_full(name: str) -> None:
    for profile in (PROFILE, None):
        for group in preset_plan(name, 512, HEADS, profile).bind_groups(HEADS):
            kept = kept_after(group.schedule, 512)
            assert all(tokens == list(range(512)) for tokens in kept.by_pattern.values())


def test_without_a_profile_only_global_guesses() -> None:
    assert isinstance(preset_plan("local", 512, HEADS, None), Ladder)
    plan = preset_plan("global", 512, HEADS, None)
    assert isinstance(plan, RetrievalHeads)
    assert all(isinstance(layer, int) for layer in plan.history)


def test_paper_is_the_released_configuration() -> None:
    plan = preset_plan("paper", 300, (1,) * 32, None)
    released = Ladder.released(299, 4, 16, 0, 32)
    assert plan == released


def test_budgets_of_each_kind() -> None:
    def plan(budget: int | float | str, prompt: int) -> object:
        return preset_source(
            "global", budget, num_heads=HEADS, bytes_per_token=100, profile=PROFILE
        )(prompt)

    assert plan(500, 1) == plan(500, 9999) == plan("50000B", 1)
    by_share = plan(0.25, 2000)
    assert isinstance(by_share, RetrievalHeads)
    assert by_share.capacity == 500


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("profile", [None, PROFILE])
@given(share=st.floats(0.01, 1.0), prompt=st.integers(1, 60))
@settings(max_examples=30, deadline=None)
def test_a_share_of_a_short_prompt_works(
    name: str, profile: HeadProfile | None, share: float, prompt: int
) -> None:
    preset_source(name, share, num_heads=HEADS, bytes_per_token=8, profile=profile)(
        prompt
    ).bind_groups(HEADS)


@pytest.mark.parametrize("name", PRESETS)
def test_what_no_capacity_can_mend_is_refused_at_once(name: str) -> None:
    with pytest.raises(ConfigError, match=r"at least 2 layers|history holds every KV head"):
        preset_source(name, 64, num_heads=(2,), bytes_per_token=8, profile=None)
    with pytest.raises(ConfigError, match="sinks=-1 must be at least 0"):
        preset_source(name, 64, num_heads=HEADS, bytes_per_token=8, profile=None, sinks=-1)


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="preset='best' must be one of balanced, local"):
        preset_plan("best", 512, HEADS, None)
    with pytest.raises(ConfigError, match="no budget was given"):
        preset_source("local", None, num_heads=HEADS, bytes_per_token=1, profile=None)
