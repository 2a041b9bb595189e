"""KV heads that move only what changes, against buffers that are filled from scratch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lacache.cache.static.kv_heads import TorchCompactionOps
from lacache.common.validation import KV_DTYPES
from lacache.policies.schedule import Schedule
from tests.cache.static.policy_strategies import schedules
from tests.cache.static.slow_kv_heads import POSITIONS, TIGHT, follow
from tests.policies.sized import schedule as schedule_of


@given(
    schedule=schedules(),
    positions=st.sampled_from(POSITIONS),
    chunks=st.lists(st.integers(1, 9), max_size=16),
    stored_in=st.sampled_from([None, *sorted(KV_DTYPES)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=30, deadline=None)
def test_gathered_and_rotated_slots_equal_buffers_filled_from_scratch(
    schedule: Schedule,
    positions: str,
    chunks: list[int],
    stored_in: str | None,
    dtype: torch.dtype,
) -> None:
    follow(schedule, positions, chunks, stored_in, dtype, TorchCompactionOps())


@pytest.mark.parametrize("stored_in", [None, *sorted(KV_DTYPES)])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("policy", TIGHT)
def test_a_compaction_before_every_token(
    policy: str, positions: str, stored_in: str | None
) -> None:
    schedule = schedule_of(TIGHT[policy], 5)
    follow(schedule, positions, [9] + [1] * 30, stored_in, torch.bfloat16, TorchCompactionOps())
