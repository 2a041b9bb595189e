"""The kernel for the attention of a chunk, against attention with a mask in float64."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lacache.kernels.build import load_kernels
from tests.cache.static.policy_strategies import sized_policies
from tests.cache.static.test_chunk_plan import by_sub_chunk, whole
from tests.cache.tiny_models import random_ids, tiny_model
from tests.engine.ragged import new_runner
from tests.policies.sized import Sized

NUM_SLOTS = 200
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


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
    seen: list[Tensor],
    scaling: float,
) -> Tensor:
    found = []
    for head, queries in enumerate(query[0].double().chunk(len(seen))):
        mine = slice(int(first_slots[head]), int(first_slots[head]) + num_stored[head])
        all_keys = torch.cat([keys[mine], new_keys[0, head], other_keys[head]]).double()
        all_values = torch.cat([values[mine], new_values[0, head]]).double()
        key, value, first, end = seen[head].long().T
        scores = queries @ all_keys[key].T * scaling
        number = torch.arange(queries.shape[1])[:, None]
        hidden = (number < first) | (number >= end)
        found.append(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ all_values[value])
    return torch.cat(found)[None]


@st.composite
def calls(draw: st.DrawFn) -> tuple[Any, ...]:
    """Arguments of the kernel: what is seen from when to when is random, but each query's own."""
    dtype = draw(st.sampled_from(list(TOLERANCES)))
    num_heads, shared = draw(st.sampled_from([(1, 1), (1, 7), (2, 3), (3, 2)]))
    length, stored = draw(st.integers(1, 120)), draw(st.integers(0, 60))
    size = draw(st.sampled_from([2, 12, 64, 80]))
    value_size = draw(st.sampled_from([size, size // 2]))
    others = draw(st.integers(0, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    def integers(low: int, high: int, number: int) -> Tensor:
        return torch.randint(low, max(high, low + 1), (number,), generator=generator)

    seen = []
    for _ in range(num_heads):
        old, new = torch.arange(stored), torch.arange(length)
        firsts = torch.cat([0 * old, new, integers(0, length, others)])
        # From before the first query, so that some are never seen.
        ends = torch.cat([integers(0, length + 1, stored), new + 1, integers(0, length, others)])
        ends[stored : stored + length] += integers(0, length, length)
        keys = torch.arange(stored + length + others)
        values = torch.cat([keys[: stored + length], integers(0, stored + length, others)])
        table = torch.stack([keys, values, firsts, ends], dim=1).int()
        seen.append(table[torch.randperm(len(table), generator=generator)])
    return (
        numbers(1, length, num_heads * shared, size).transpose(1, 2),
        numbers(NUM_SLOTS, size),
        numbers(NUM_SLOTS, value_size),
        integers(0, NUM_SLOTS - stored, num_heads),
        [stored] * num_heads,
        numbers(1, length, num_heads, size).transpose(1, 2),
        numbers(1, length, num_heads, value_size).transpose(1, 2),
        [numbers(others, size) for _ in range(num_heads)],
        seen,
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
    tolerance = TOLERANCES[call[0].dtype]
    torch.testing.assert_close(found.double(), slow_attend(*call), atol=tolerance, rtol=0)


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
    chunks=st.lists(st.integers(1, 70), min_size=1, max_size=3),
)
@settings(max_examples=30, deadline=None)
def test_a_runner_with_kernels_equals_sub_chunks_without(
    sized: Sized, family: str, chunks: list[int]
) -> None:
    tiny = tiny_model(family)
    fast = new_runner(tiny, sized, 1, None, kernels=True)
    slow = new_runner(tiny, sized, 1, None)
    for tokens in random_ids(sum(chunks))[0].split(chunks):
        found, expected = whole(fast, tokens), by_sub_chunk(slow, tokens)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
