"""The kernel for the attention of a chunk, against attention with a mask in float64."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lacache.common.validation import KV_DTYPES
from lacache.kernels.build import load_kernels
from tests.cache.static.policy_strategies import sized_policies
from tests.cache.static.test_chunk_plan import by_sub_chunk, whole
from tests.cache.tiny_models import random_ids, tiny_model
from tests.engine.ragged import new_runner
from tests.policies.sized import Sized

NUM_SLOTS = 200
STEPS = {"int8": 0.05, "int4": 0.5}
TOLERANCES = {torch.float32: (2e-5, 0.0), torch.bfloat16: (1e-4, 2**-8)}
"""Absolute and relative: sums in float32, and a rounding to the type."""


@pytest.fixture(autouse=True, scope="module")
def _kernels() -> None:
    load_kernels()


def slow_attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    first_slots: Tensor,
    num_stored: list[int],
    new_keys: Tensor,
    new_values: Tensor,
    other_keys: list[Tensor],
    visible: list[Tensor],
    scaling: float,
) -> Tensor:
    found = []
    for head, queries in enumerate(query[0].double().chunk(len(visible))):
        mine = slice(int(first_slots[head]), int(first_slots[head]) + num_stored[head])
        all_keys = torch.cat([keys[mine], new_keys[0, head], other_keys[head]]).double()
        all_values = torch.cat([values[mine], new_values[0, head]]).double()
        key, value, first, end = visible[head].long().T
        scores = queries @ all_keys[key].T * scaling
        number = torch.arange(queries.shape[1])[:, None]
        hidden = (number < first) | (number >= end)
        found.append(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ all_values[value])
    return torch.cat(found)[None]


@st.composite
def calls(draw: st.DrawFn) -> tuple[Any, ...]:
    """Arguments of the kernel: each query sees its own token, and others from when to when."""
    dtype = draw(st.sampled_from(list(TOLERANCES)))
    num_heads, shared = draw(st.sampled_from([(1, 1), (1, 7), (2, 3), (3, 2)]))
    length, stored = draw(st.integers(1, 120)), draw(st.integers(0, 60))
    size = draw(st.sampled_from([2, 12, 64, 80]))
    value_size = draw(st.sampled_from([size, size // 2]))
    others, is_sorted = draw(st.integers(0, 9)), draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    def integers(low: int, high: int, number: int) -> Tensor:
        return torch.randint(low, max(high, low + 1), (number,), generator=generator)

    visible = []
    for _ in range(num_heads):
        old, new = torch.arange(stored), torch.arange(length)
        firsts = torch.cat([0 * old, new, integers(0, length, others)])
        # From before the first query, so that some are never visible.
        ends = torch.cat([integers(0, length + 1, stored), new + 1, integers(0, length, others)])
        ends[stored : stored + length] += integers(0, length, length)
        keys = torch.arange(stored + length + others)
        values = torch.cat([keys[: stored + length], integers(0, stored + length, others)])
        table = torch.stack([keys, values, firsts, ends], dim=1).int()
        order = torch.randperm(len(table), generator=generator)
        if is_sorted:
            # As the engine sorts, so that most are visible to whole blocks of queries or to none.
            order = (table[:, 3] * 1000 + table[:, 2]).argsort()
        visible.append(table[order])
    return (
        numbers(1, length, num_heads * shared, size).transpose(1, 2),
        numbers(NUM_SLOTS, size),
        numbers(NUM_SLOTS, value_size),
        integers(0, NUM_SLOTS - stored, num_heads),
        [stored] * num_heads,
        numbers(1, length, num_heads, size).transpose(1, 2),
        numbers(1, length, num_heads, value_size).transpose(1, 2),
        [numbers(others, size) for _ in range(num_heads)],
        visible,
        size**-0.5,
    )


@given(call=calls(), threads=st.sampled_from([1, 2]))
@settings(max_examples=150, deadline=None)
def test_any_chunk(call: tuple[Any, ...], threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = torch.ops.lacache.attend_chunk(*call)
    finally:
        torch.set_num_threads(before)
    absolute, relative = TOLERANCES[call[0].dtype]
    expected = slow_attend(*call)
    torch.testing.assert_close(found.double(), expected, atol=absolute, rtol=relative)


@pytest.mark.parametrize("argument", [3, 4, 8])
def test_slots_that_are_not_there_are_refused(argument: int) -> None:
    ones = torch.ones(1, 1, 1, 8)
    table = torch.tensor([[0, 0, 0, 1]], dtype=torch.int32)
    call: list[Any] = [ones, *[torch.ones(4, 8)] * 2, torch.tensor([3]), [1], ones, ones]
    call += [[torch.ones(0, 8)], [table], 1.0]
    assert torch.equal(torch.ops.lacache.attend_chunk(*call), ones)
    wrong = {3: torch.tensor([4]), 4: [2], 8: [table + 2]}
    call[argument] = wrong[argument]
    with pytest.raises(RuntimeError, match=r"attend_chunk: .*(there|among)"):
        torch.ops.lacache.attend_chunk(*call)


@given(
    sized=sized_policies(5, 2),
    family=st.sampled_from(["llama", "smollm3"]),
    kv_dtype=st.sampled_from([None, None, *sorted(KV_DTYPES)]),
    chunks=st.lists(st.integers(1, 70), min_size=1, max_size=3),
)
@settings(max_examples=40, deadline=None)
def test_a_runner_with_kernels_equals_sub_chunks_without(
    sized: Sized, family: str, kv_dtype: str | None, chunks: list[int]
) -> None:
    tiny = tiny_model(family)
    fast = new_runner(tiny, sized, 1, None, kv_dtype, kernels=True)
    slow = new_runner(tiny, sized, 1, None, kv_dtype)
    # Of float32; a number that is rounded the other way is a step off.
    close = 1e-4 if kv_dtype is None else STEPS[kv_dtype]
    for tokens in random_ids(sum(chunks))[0].split(chunks):
        found, expected = whole(fast, tokens), by_sub_chunk(slow, tokens)
        torch.testing.assert_close(found, expected, atol=close, rtol=close)
