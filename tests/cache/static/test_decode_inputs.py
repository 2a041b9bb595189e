"""What a decode step reads is carried on from the last step, or computed anew: the same."""

from functools import cache as memoize
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lacache import Ladder
from lacache.cache.static.decode_inputs import DecodeInputs
from tests.cache.static.policy_strategies import sized_policies
from tests.cache.tiny_models import tiny_model
from tests.engine.ragged import Ragged, new_runner
from tests.policies.sized import Sized

BATCH_SLOTS = 3
LADDER = (16, Ladder(span=2, sinks=2, recent=5, evict_batch=4))


@memoize
def model(family: str) -> Any:
    return tiny_model(family)


class ComputedTwice(Ragged):
    """Random calls; before each step all inputs are computed anew and compared."""

    num_carried = 0

    def step(self, active: list[int]) -> None:
        cache = self.runner.cache
        is_calm = all(cache.sequences[batch_slot].is_calm for batch_slot in active)
        cache.begin_decode(active)
        carried = clones(cache._inputs, active)
        cache._inputs.update(cache.sequences, active, masks=True, is_calm=False)
        for one, other in zip(carried, clones(cache._inputs, active), strict=True):
            assert torch.equal(one, other)
        self.num_carried += is_calm
        # As an interrupted call that is made again.
        super().step(active)


def clones(inputs: DecodeInputs, active: list[int]) -> list[Tensor]:
    return [tensor[active].clone() for tensor in inputs.tensors() if len(tensor) == BATCH_SLOTS]


@given(sized=sized_policies(5, 2), seed=st.integers())
@settings(max_examples=30, deadline=None)
def test_inputs_that_are_carried_on_equal_those_computed_anew(sized: Sized, seed: int) -> None:
    ragged = ComputedTwice(new_runner(model("llama"), sized, BATCH_SLOTS, None), seed)
    for _ in range(12):
        ragged.random_call()


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_most_steps_carry_their_inputs_on(family: str) -> None:
    ragged = ComputedTwice(new_runner(model(family), LADDER, BATCH_SLOTS, None), 1)
    for _ in range(40):
        ragged.step([0, 2])
    assert ragged.num_carried > 20
