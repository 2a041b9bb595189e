"""The kernels that gather slots and rotate keys, against torch's operators, bit for bit."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lacache.cache.static.compaction_ops import TorchCompactionOps
from lacache.cache.static.sequence_tensors import export_sequence, restore_sequence
from lacache.common.validation import KV_DTYPES
from lacache.engine.cpu.kernels import KernelCompactionOps
from lacache.kernels.build import load_kernels
from lacache.policies import Ladder
from tests.cache.static.slow_kv_heads import POSITIONS, TIGHT, follow
from tests.cache.tiny_models import random_ids, tiny_model
from tests.engine.ragged import new_runner
from tests.policies.sized import schedule as schedule_of

FAST, SLOW = KernelCompactionOps(), TorchCompactionOps()
LADDER = (16, Ladder(span=2, sinks=2, recent=5, evict_batch=3))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True, scope="module")
def _kernels() -> None:
    load_kernels()


@given(
    kept=st.lists(st.booleans(), min_size=1, max_size=30),
    heads=st.integers(1, 3),
    shape=st.sampled_from([(), (1,), (5,)]),
    dtype=st.sampled_from((*DTYPES, torch.int8)),
    data=st.data(),
)
def test_any_slots_are_gathered(
    kept: list[bool], heads: int, shape: tuple[int, ...], dtype: torch.dtype, data: st.DataObject
) -> None:
    slots = torch.tensor(kept).nonzero()[:, 0]
    start = data.draw(st.integers(0, len(slots)))
    fast = torch.arange(1, 1 + heads * len(kept)).view(heads, len(kept), *(1 for _ in shape))
    fast = fast.expand(heads, len(kept), *shape).to(dtype).contiguous()
    slow = fast.clone()
    FAST.gather(fast, slots, start)
    SLOW.gather(slow, slots, start)
    assert torch.equal(fast, slow)


@given(
    moves=st.lists(st.tuples(*(st.integers(0, 10),) * 3), max_size=8),
    width=st.integers(1, 5),
    dtype=st.sampled_from((*DTYPES, torch.int8)),
)
def test_any_runs_are_moved(
    moves: list[tuple[int, int, int]], width: int, dtype: torch.dtype
) -> None:
    fast = torch.arange(20 * width).view(20, width).to(dtype)
    slow = fast.clone()
    runs = torch.tensor(moves, dtype=torch.long).view(-1, 3)
    FAST.move(fast, runs)
    SLOW.move(slow, runs)
    assert torch.equal(fast, slow)


@pytest.mark.parametrize("move", [(-1, 0, 2), (0, 4, 2), (0, 0, -1), (5, 0, 1)])
def test_runs_that_are_not_there_are_refused(move: tuple[int, int, int]) -> None:
    with pytest.raises(RuntimeError, match="lacache::move: runs are among the rows"):
        FAST.move(torch.zeros(5, 2), torch.tensor([move]))


@given(
    heads=st.integers(1, 3),
    number=st.integers(0, 20),
    size=st.integers(1, 130),
    pairs=st.sampled_from(["halves", "neighbours", "a leading part", "any"]),
    dtype=st.sampled_from(DTYPES),
    start=st.integers(0, 4),
    scale=st.sampled_from((1e-30, 1.0, 1e30)),
    seed=st.integers(0, 10**6),
)
def test_any_keys_are_rotated(
    heads: int,
    number: int,
    size: int,
    pairs: str,
    dtype: torch.dtype,
    start: int,
    scale: float,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    stored = scale * torch.randn(2, heads, 24, size, generator=generator)
    keys = stored.to(dtype)[1:, :, start : start + number]
    cosines, sines = torch.randn(2, number, size, generator=generator)
    each = torch.arange(size)
    partners = {
        "halves": each.roll(size // 2),
        "neighbours": (each ^ 1).clamp_max(size - 1),
        "a leading part": torch.cat([each[: size // 3].flip(0), each[size // 3 :]]),
        "any": torch.randperm(size, generator=generator),
    }[pairs]
    fast = FAST.rotate(keys, cosines, sines, partners)
    slow = SLOW.rotate(keys, cosines, sines, partners)
    assert fast.dtype is dtype
    assert torch.equal(fast.nan_to_num(), slow.nan_to_num())
    assert torch.equal(fast.isnan(), slow.isnan())


@given(
    heads=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    moves=st.sets(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=12),
    width=st.integers(1, 5),
    dtype=st.sampled_from((*DTYPES, torch.int8)),
)
def test_any_few_slots_are_moved(
    heads: list[int], moves: set[tuple[int, int]], width: int, dtype: torch.dtype
) -> None:
    fast = torch.arange(20 * len(heads) * width).view(-1, width).to(dtype)
    slow = fast.clone()
    first, patterns = 20 * torch.arange(len(heads)), torch.tensor(heads)
    runs = [(pattern, slot, 10 + n % 10) for n, (pattern, slot) in enumerate(sorted(moves))]
    few = torch.tensor(runs, dtype=torch.long).view(-1, 3).T.contiguous()
    FAST.move_few(fast, first, patterns, few)
    SLOW.move_few(slow, first, patterns, few)
    assert torch.equal(fast, slow)
    for head, pattern in enumerate(heads):
        for other, slot, source in runs:
            if other == pattern:
                assert torch.equal(slow[20 * head + slot], slow[20 * head + source])


@pytest.mark.parametrize("move", [(0, 20, 1), (0, 1, 20), (0, -21, 1), (0, 1, -21)])
def test_few_slots_that_are_not_there_are_refused(move: tuple[int, int, int]) -> None:
    first, patterns = torch.tensor([20]), torch.tensor([0])
    with pytest.raises(RuntimeError, match="lacache::move_few: slots are among the rows"):
        FAST.move_few(torch.zeros(40, 2), first, patterns, torch.tensor([move]).T.contiguous())


@given(
    heads=st.lists(st.integers(0, 2), min_size=1, max_size=6),
    kept=st.lists(st.tuples(*(st.booleans(),) * 3), min_size=1, max_size=20),
    width=st.integers(1, 5),
    dtype=st.sampled_from((*DTYPES, torch.int8)),
    data=st.data(),
)
def test_slots_of_any_heads_are_gathered(
    heads: list[int], kept: list[tuple[bool, ...]], width: int, dtype: torch.dtype, data: Any
) -> None:
    keep = torch.tensor(kept).T
    number = int(keep.sum(1).min())
    sources = torch.stack([of.nonzero()[:number, 0] for of in keep])
    starts = torch.tensor([data.draw(st.integers(0, number)) for _ in keep])
    fast = torch.arange(len(kept) * len(heads) * width).view(-1, width).to(dtype)
    slow, one_by_one = fast.clone(), fast.clone()
    first, patterns = len(kept) * torch.arange(len(heads)), torch.tensor(heads)
    FAST.gather_slots(fast, first, patterns, sources, starts)
    SLOW.gather_slots(slow, first, patterns, sources, starts)
    for stored, pattern in zip(one_by_one.split(len(kept)), heads, strict=True):
        SLOW.gather(stored[None], sources[pattern], int(starts[pattern]))
    assert torch.equal(fast, slow)
    assert torch.equal(fast, one_by_one)


@given(
    heads=st.lists(st.integers(0, 2), min_size=1, max_size=5),
    ranges=st.tuples(*(st.tuples(st.integers(0, 4), st.integers(0, 4)),) * 3),
    size=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 10**6),
)
def test_slots_of_any_heads_are_rotated(
    heads: list[int],
    ranges: tuple[tuple[int, int], ...],
    size: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    fast = torch.randn(9 * len(heads), size, generator=generator).to(dtype)
    slow, one_by_one = fast.clone(), fast.clone()
    first, first_copies = (
        9 * torch.randperm(len(heads), generator=generator),
        8 * torch.arange(len(heads)),
    )
    copies = torch.randn(8 * len(heads), size, generator=generator).to(dtype)
    slots = torch.tensor([(start, start + length) for start, length in ranges])
    lengths = [length for _, length in ranges]
    cosines, sines = torch.randn(2, sum(lengths), size, generator=generator)
    partners = torch.randperm(size, generator=generator)
    rest = (copies, first_copies), slots, (cosines, sines), partners
    FAST.rotate_slots(fast, first, torch.tensor(heads), *rest)
    SLOW.rotate_slots(slow, first, torch.tensor(heads), *rest)
    tables = cosines.split(lengths), sines.split(lengths)
    for head, pattern in enumerate(heads):
        start, stop = slots[pattern].tolist()
        keys = copies[8 * head + start : 8 * head + stop][None, None]
        rotated = SLOW.rotate(keys, *(table[pattern] for table in tables), partners)
        one_by_one[first[head] + start : first[head] + stop] = rotated[0, 0]
    assert torch.equal(fast, slow)
    assert torch.equal(fast, one_by_one)


@pytest.mark.parametrize(
    "change", ["first", "patterns", "ranges", "tables", "copies", "type", "backwards"]
)
def test_slots_that_cannot_be_rotated_are_refused(change: str) -> None:
    stored, copies = torch.zeros(10, 4), torch.zeros(6, 4)
    first, patterns, first_copies = torch.tensor([2, 6]), torch.tensor([0, 1]), torch.tensor([0, 3])
    ranges, tables = torch.tensor([[0, 2], [1, 3]]), torch.zeros(4, 4)
    if change == "first":
        first = first + 2
    elif change == "patterns":
        patterns = patterns + 1
    elif change == "ranges":
        ranges = ranges.float()
    elif change == "tables":
        tables = tables[:3]
    elif change == "copies":
        first_copies = first_copies + 1
    elif change == "type":
        copies = copies.half()
    else:
        ranges = ranges.flip(1)
    rest = copies, first_copies, ranges, tables, tables, torch.arange(4)
    with pytest.raises(RuntimeError, match="lacache"):
        torch.ops.lacache.rotate_slots(stored, first, patterns, *rest)


@pytest.mark.parametrize("stored_in", [None, *sorted(KV_DTYPES)])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("policy", TIGHT)
def test_gathered_and_rotated_slots_equal_buffers_filled_from_scratch(
    policy: str, positions: str, stored_in: str | None
) -> None:
    chunks = [9] + [1] * 12 + [3] * 6
    follow(schedule_of(TIGHT[policy], 5), positions, chunks, stored_in, torch.bfloat16, FAST)


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma3"])
def test_a_sequence_continues_without_the_kernels(family: str) -> None:
    """What is held is the same, bit for bit; attention and products round in their own way."""
    runners = [new_runner(tiny_model(family), LADDER, 1, None, kernels=k) for k in (True, False)]
    fast, slow = (runner.cache for runner in runners)
    for token in random_ids(50)[0].tolist():
        runners[0].decode([token], [0])
    restore_sequence(slow, 0, export_sequence(fast, 0))
    held = fast.sequences[0].groups[0].num_saved
    assert fast.sequences[0].groups[0].num_compactions > 5
    for ours, theirs in zip(fast.all_kv_heads(), slow.all_kv_heads(), strict=True):
        assert torch.equal(ours.keys.read(0, held), theirs.keys.read(0, held))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_no_number_stays_none(dtype: torch.dtype) -> None:
    keys = torch.tensor([float("nan"), float("inf"), -float("inf"), 3.5e38, -1.0, 0.0]).to(dtype)
    keys = keys.view(1, 1, 1, -1)
    cosines, sines = torch.ones(1, 6), torch.zeros(1, 6)
    partners = torch.arange(6)
    fast = FAST.rotate(keys, cosines, sines, partners)
    slow = SLOW.rotate(keys, cosines, sines, partners)
    torch.testing.assert_close(fast, slow, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("slots", [[0, 0], [2, 0], [0, 5], [-1, 2], list(range(6))])
def test_slots_that_cannot_be_are_refused(slots: list[int]) -> None:
    stored = torch.randn(2, 5, 3)
    with pytest.raises(RuntimeError, match="lacache::gather"):
        torch.ops.lacache.gather(stored, torch.tensor(slots), 0)


@pytest.mark.parametrize("change", ["keys", "tables", "size", "partners", "type"])
def test_keys_that_do_not_fit_are_refused(change: str) -> None:
    keys, table, partners = torch.randn(1, 2, 5, 8), torch.randn(5, 8), torch.arange(8)
    if change == "keys":
        keys = keys.expand(2, -1, -1, -1)
    elif change == "tables":
        table = table[:4]
    elif change == "size":
        table = torch.randn(8, 5).T
    elif change == "partners":
        partners = partners + 1
    else:
        keys = keys.half()
    with pytest.raises(RuntimeError, match="lacache::rotate"):
        torch.ops.lacache.rotate(keys, table, table, partners)


@given(
    num_heads=st.integers(1, 3),
    length=st.integers(1, 9),
    dtype=st.sampled_from((*DTYPES, torch.int8)),
    data=st.data(),
)
def test_any_tokens_that_are_left_are_stored(
    num_heads: int, length: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    """Slots of a head are 12 side by side; the first heads' tokens come last in memory."""
    fast = torch.arange(12 * num_heads * 3).view(-1, 3).to(dtype)
    slow = fast.clone()
    first = 12 * torch.arange(num_heads).flip(0)
    new = -torch.arange(length * num_heads * 3).view(length, num_heads, 3).to(dtype).transpose(0, 1)
    moved, added = [], []
    for _ in range(num_heads):
        order = torch.tensor(data.draw(st.permutations(range(12))))
        moves, stores = data.draw(st.integers(0, 4)), data.draw(st.integers(0, 4))
        tokens = data.draw(st.lists(st.integers(0, length - 1), min_size=stores, max_size=stores))
        moved.append(torch.stack([order[:moves], order[4 : 4 + moves]]))
        added.append(torch.stack([order[8 : 8 + stores], torch.tensor(tokens, dtype=torch.long)]))
    FAST.store_left(fast, first, moved, added, new)
    SLOW.store_left(slow, first, moved, added, new)
    assert torch.equal(fast, slow)


@pytest.mark.parametrize("argument", [1, 2, 3])
def test_tokens_that_are_not_there_are_not_stored(argument: int) -> None:
    none, pair = torch.empty(2, 0, dtype=torch.long), torch.tensor([[0], [2]])
    call: list[Any] = [torch.zeros(2, 3), torch.tensor([0]), [none], [none], torch.ones(1, 2, 3)]
    FAST.store_left(*call)
    wrong = {1: torch.tensor([2]), 2: [pair], 3: [pair]}
    call[argument] = wrong[argument]
    if argument == 1:
        call[2] = [pair * 0]
    with pytest.raises(RuntimeError, match="lacache::store_left"):
        FAST.store_left(*call)
