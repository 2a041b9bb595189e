"""Compactions of all layers at once, against the same layer by layer, bit for bit."""

from functools import cache as memoize
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lacache import Ladder
from lacache.cache.static.sequence_tensors import export_sequence
from lacache.engine.runner import Runner
from lacache.kernels.build import load_kernels
from tests.cache.static.policy_strategies import sized_policies
from tests.cache.tiny_models import random_ids, tiny_model
from tests.engine.ragged import new_runner
from tests.policies.sized import Sized

FAMILIES = ["llama", "smollm3"]


@pytest.fixture(autouse=True, scope="module")
def _kernels() -> None:
    load_kernels()


@memoize
def model(family: str, trained_length: int) -> Any:
    return tiny_model(family, max_position_embeddings=trained_length)


def layer_by_layer(runner: Runner) -> Runner:
    """Let a runner apply every plan with `KVHeads.apply`."""
    for group in runner.cache._group_heads:
        for heads in group:
            heads._at_once = False
    return runner


def check_equal(one: Runner, other: Runner, batch_slot: int) -> None:
    found, expected = (export_sequence(runner.cache, batch_slot) for runner in (one, other))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert torch.equal(*(_keys(runner, batch_slot) for runner in (one, other)))


def _keys(runner: Runner, batch_slot: int) -> torch.Tensor:
    """All keys that attention reads, sinks too."""
    sequence = runner.cache.sequences[batch_slot]
    return torch.cat(
        [
            heads.keys.read(batch_slot, sequence.groups[heads.group].state.num_cached).flatten()
            for heads in runner.cache.all_kv_heads()
        ]
    )


@given(
    sized=sized_policies(5, 2),
    family=st.sampled_from(FAMILIES),
    trained_length=st.sampled_from([40, 4096]),
    prompt=st.integers(1, 50),
    steps=st.integers(1, 60),
    kernels=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_a_plan_for_all_layers_is_the_plan_for_each(
    sized: Sized, family: str, trained_length: int, prompt: int, steps: int, kernels: bool
) -> None:
    tiny = model(family, trained_length)
    fast, slow = (new_runner(tiny, sized, 2, None, kernels=kernels) for _ in range(2))
    layer_by_layer(slow)
    tokens = random_ids(prompt + steps)[0]
    for runner in (fast, slow):
        start = 0
        while start < prompt:
            stop = start + runner.cache.chunk_length(1, prompt - start)
            runner.prefill(1, tokens[start:stop])
            start = stop
    for token in tokens[prompt:].tolist():
        logits = [runner.decode([0, token], [1])[1] for runner in (fast, slow)]
        assert torch.equal(*logits)
    check_equal(fast, slow, 1)


@pytest.mark.parametrize("kv_dtype", [None, "int8"])
def test_only_plain_keys_and_values_are_compacted_at_once(kv_dtype: str | None) -> None:
    policy = Ladder(span=2, sinks=2, recent=5, evict_batch=3)
    runner = new_runner(model("llama", 4096), (16, policy), 1, None, kv_dtype)
    at_once = [heads._at_once for group in runner.cache._group_heads for heads in group]
    assert at_once == [kv_dtype is None]
