"""Parts that move only what changes against one that makes everything anew."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lacache.cache.static.mover import TorchMover
from lacache.cache.static.quantized import KV_DTYPES
from lacache.policies.schedule import Schedule
from tests.cache.static.following import POSITIONS, TIGHT, follow
from tests.cache.static.policy_strategies import schedules
from tests.policies.sized import schedule as schedule_of


@given(
    schedule=schedules(),
    positions=st.sampled_from(POSITIONS),
    pieces=st.lists(st.integers(1, 9), max_size=16),
    stored_in=st.sampled_from([None, *sorted(KV_DTYPES)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=30, deadline=None)
def test_what_moves_is_as_if_made_anew(
    schedule: Schedule,
    positions: str,
    pieces: list[int],
    stored_in: str | None,
    dtype: torch.dtype,
) -> None:
    follow(schedule, positions, pieces, stored_in, dtype, TorchMover())


@pytest.mark.parametrize("stored_in", [None, *sorted(KV_DTYPES)])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("policy", TIGHT)
def test_a_compaction_before_every_token(
    policy: str, positions: str, stored_in: str | None
) -> None:
    schedule = schedule_of(TIGHT[policy], 5)
    follow(schedule, positions, [9] + [1] * 30, stored_in, torch.bfloat16, TorchMover())
