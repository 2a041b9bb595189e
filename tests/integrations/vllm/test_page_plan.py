"""The pages of a sequence, compared with heads that take one token at a time."""

from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacache.errors import ConfigError
from lacache.integrations.vllm.page_plan import (
    PagePlan,
    PlannedHead,
    find_page_size,
    page_stretches,
    plan_pages,
)
from lacache.policies import (
    DEFAULT_POLICY,
    BoundGroup,
    BoundPolicy,
    ModelShape,
    Schedule,
    State,
    bind_policy,
    most_slots,
    parse_policy,
)
from lacache.policies.head_profile import SHIPPED, read_profile
from lacache.policies.schedule import SlotRanges
from tests.integrations.vllm.strategies import bound_groups

SMOLLM2 = read_profile(SHIPPED / "smollm2-135m-instruct.json")


def planned(groups: tuple[BoundGroup, ...]) -> list[PlannedHead]:
    """Return the KV heads of a model, in order of layers."""
    heads = [
        ((layer, head), PlannedHead(layer, group.schedule))
        for group in groups
        for layer, own in group.heads.items()
        for head in own
    ]
    return [head for _, head in sorted(heads, key=lambda each: each[0])]


@st.composite
def planned_heads(draw: st.DrawFn) -> list[PlannedHead]:
    """The heads of a policy, in any layers."""
    schedules = [head.schedule for head in planned(draw(bound_groups()))]
    layer = st.integers(0, draw(st.integers(0, 4)))
    layers = draw(st.lists(layer, min_size=len(schedules), max_size=len(schedules)))
    return list(map(PlannedHead, sorted(layers), draw(st.permutations(schedules))))


def tokens_until_steady(heads: list[PlannedHead]) -> int:
    """Return after how many tokens no head gives up a page any more."""
    return 1 + max(max(h.schedule.capacity, h.schedule.steady_from) for h in heads)


def slow_pages(schedule: Schedule, page_size: int, num_tokens: int) -> list[int]:
    """Return by token how many pages a head has begun, and uses then or later."""
    state, lengths = schedule.start(), []
    # Within so many tokens it uses all pages that it still needs.
    for _ in range(num_tokens + schedule.capacity):
        state = schedule.settle(state).insert(1)
        lengths.append(state.num_cached)
    used = [-(-length // page_size) for length in lengths]
    return [min(max(used[: token + 1]), max(used[token:])) for token in range(num_tokens)]


class SlowPages:
    """The heads of a sequence, whose layers take the tokens of a step one after the other."""

    def __init__(self, heads: list[PlannedHead], plan: PagePlan, page_size: int) -> None:
        self.heads = heads
        self.tables = [table.tolist() for table in plan.tables]
        self.page_size = page_size
        self.states = [head.schedule.start() for head in heads]
        # Whose slots each page holds.
        self.owner: dict[int, int] = {}

    def run(self, num_tokens: int) -> None:
        """Run a step."""
        layers: dict[int, list[int]] = {}
        for number, head in enumerate(self.heads):
            layers.setdefault(head.layer, []).append(number)
        for own in layers.values():
            for _ in range(num_tokens):
                self.check(own)
                for number in own:
                    state = self.heads[number].schedule.settle(self.states[number])
                    self.owner[self.page(number, state.num_cached)] = number
                    self.states[number] = state.insert(1)
                self.check(own)

    def check(self, numbers: list[int]) -> None:
        """The pages of these heads hold their slots, and no others."""
        for number in numbers:
            for slot in range(0, self.states[number].num_cached, self.page_size):
                assert self.owner[self.page(number, slot)] == number

    def page(self, number: int, slot: int) -> int:
        """Return the page of a head's slot."""
        assert slot < len(self.tables[number]) * self.page_size
        found: int = self.tables[number][slot // self.page_size]
        return found


@settings(max_examples=150, deadline=None)
@given(
    heads=planned_heads(),
    page_size=st.sampled_from([1, 2, 5, 8, 64]),
    most_tokens=st.sampled_from([1, 2, 7, 40]),
    steps=st.lists(st.integers(1, 40), min_size=1, max_size=9),
)
def test_pages_hold_one_head_at_a_time(
    heads: list[PlannedHead], page_size: int, most_tokens: int, steps: list[int]
) -> None:
    plan = plan_pages(heads, page_size, most_tokens)
    assert {page for table in plan.tables for page in table} == set(range(plan.num_pages))
    slow = SlowPages(heads, plan, page_size)
    end = tokens_until_steady(heads) + most_tokens
    for count in cycle(steps):
        slow.run(min(count, most_tokens))
        slow.check(list(range(len(heads))))
        if slow.states[0].num_seen > end:
            break


@settings(max_examples=60, deadline=None)
@given(
    heads=planned_heads(),
    page_size=st.sampled_from([1, 2, 5, 8]),
    most_tokens=st.sampled_from([1, 7, 1_000]),
)
def test_number_of_pages(heads: list[PlannedHead], page_size: int, most_tokens: int) -> None:
    """No fewer than are needed at some token, and no more where one layer has all heads."""
    num_tokens = tokens_until_steady(heads)
    by_head = [slow_pages(head.schedule, page_size, num_tokens) for head in heads]
    most = max(map(sum, zip(*by_head, strict=True)))
    own = sum(max(used) for used in by_head)
    assert most <= plan_pages(heads, page_size, most_tokens).num_pages <= own
    one_layer = [PlannedHead(3, head.schedule) for head in heads]
    assert plan_pages(one_layer, page_size, most_tokens).num_pages == most


def test_an_earlier_layer_waits_for_the_next_step() -> None:
    """A later layer has a page at once; an earlier one where no step has both heads' tokens."""
    windows = "groups:{}@48@streaming:evict_batch=4/{}@16@shrinking:least=8:growing_heads=1:{}"
    both = "window_heads=1:evict_batch=4"
    for layer, most_tokens, num_pages in ((1, 100, 7), (0, 1, 7), (0, 100, 8)):
        text = windows.format(layer, 1 - layer, both)
        heads = planned(parse_policy(text).bind(ModelShape((1, 1)), 0))
        assert plan_pages(heads, 8, most_tokens).num_pages == num_pages


def default_policy(budget: int) -> BoundPolicy:
    """Return the default policy in SmolLM2-135M."""
    shape = ModelShape(SMOLLM2.num_heads, SMOLLM2)
    policy = parse_policy(DEFAULT_POLICY)
    return bind_policy(policy, budget, shape, bytes_per_token=1, prompt_tokens=1)


@pytest.mark.parametrize(("budget", "page_size"), [(512, 32), (1024, 64), (2048, 128), (4096, 128)])
def test_pages_of_the_default_policy(budget: int, page_size: int) -> None:
    """A tenth more than the slots that it holds at most, or less."""
    bound = default_policy(budget)
    schedules = [group.schedule for group in bound.groups]
    slots = most_slots(schedules, [group.num_heads for group in bound.groups])
    assert slots > 0.99 * budget * sum(SMOLLM2.num_heads)
    for size in (page_size, find_page_size(bound, least=32)):
        plan = plan_pages(planned(bound.groups), size, budget // 2)
        assert slots <= plan.num_pages * size <= 1.1 * slots


@pytest.mark.parametrize("least", [16, 32])
@pytest.mark.parametrize("budget", [100, 511, 512, 1024, 1500, 4096, 100_000])
def test_page_size(budget: int, least: int) -> None:
    """A power of two, at most a 32nd of what a head holds on average."""
    size = find_page_size(default_policy(budget), least=least)
    assert least <= size <= 128
    assert size.bit_count() == 1
    assert size == least or 32 * size <= budget
    assert size == 128 or 64 * size > 0.99 * budget


class Regrowing(Schedule):
    """A schedule whose compactions leave room for few and for many tokens in turn."""

    capacity = 8
    patterns = (0,)

    def start(self) -> State:
        return State(0, 0, 0)

    def room(self, state: State) -> int:
        return (3 if state.cursor else 8) - state.num_cached

    def compact(self, state: State) -> State:
        return State(state.num_seen, 2, 1 - state.cursor)

    def evicted_slots(self, state: State, pattern: int) -> SlotRanges:
        return [(0, state.num_cached - 2)]


def test_pages_that_are_needed_again() -> None:
    assert len(page_stretches(Regrowing(), 8)) == 1
    with pytest.raises(ConfigError, match="needs 2 pages after 9 tokens, and only 1 before"):
        page_stretches(Regrowing(), 4)
