"""The static store and its runner against the slow twin and against the transformers cache."""

from functools import cache as memoize
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacache import LaCache
from lacache.core import Group, Groups, LadderConfig, Plan, SinkWindow
from lacache.engine.runner import Runner
from tests.cache.slow_cache import slow_generate
from tests.cache.static.plans import plans
from tests.cache.tiny_models import FAMILIES, random_ids, tiny_model
from tests.engine.ragged import Ragged

LADDER = LadderConfig(capacity=16, span=2, sinks=2, recent=5, refill=3)
BY_HEAD = Groups(
    (
        Group(LadderConfig(capacity=24, span=1, sinks=2, recent=4, refill=4), (1, (3, 0), (0, 1))),
        Group(SinkWindow(9, 2, refill=3), ((0, 0), (3, 1))),
        Group(SinkWindow(14, 1), (2,)),
    )
)
WITH_FIVE_LAYERS = ("llama", "qwen2", "phi3", "smollm3")


@memoize
def model(family: str = "llama") -> Any:
    return tiny_model(family)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    """Rows of three lengths, one of them idle at times, and their texts alone."""
    ragged = Ragged(Runner(model(family), LADDER, 3, None), seed=0)
    for length in (16, 5, 1, 13):
        ragged.read(0, length)
        ragged.read(2, 3)
        ragged.step([0, 2])
    for active in ([1], [0, 1], [2], [0, 1, 2]):
        for _ in range(7):
            ragged.step(active)
    ragged.fork(0, 1)
    for _ in range(4):
        ragged.step([0, 1])
    ragged.clear(2)
    ragged.read(2, 16)
    ragged.step([2])
    ragged.check(model(family), LADDER)


@given(plan=plans(5, 2), seed=st.integers(0, 1000))
@settings(max_examples=12)
def test_any_plan_and_any_calls(plan: Plan, seed: int) -> None:
    ragged = Ragged(Runner(model(), plan, 3, None), seed)
    for _ in range(14):
        ragged.random_call()
    ragged.check(model(), plan)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_that_of_the_twins(family: str) -> None:
    prompt, num_new = random_ids(21, seed=1), 25
    runner = Runner(model(family), LADDER, 3, None)
    text, row = prompt[0].tolist(), 1
    unread = prompt[0]
    while len(unread):
        room = runner.store.rows[row].room()
        logits, unread = runner.read(row, unread[:room]), unread[room:]
    for _ in range(num_new):
        text.append(int(logits.argmax()))
        logits = runner.step([0, text[-1], 0], [row])[row]
    assert text == slow_generate(model(family), prompt, LADDER, 5, num_new)[0].tolist()
    cache = LaCache.from_model(model(family), LADDER)
    generated = model(family).generate(
        prompt, past_key_values=cache, max_new_tokens=num_new, do_sample=False
    )
    assert text == generated[0].tolist()
