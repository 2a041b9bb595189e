"""The pool of slots: regions that move, against tokens kept by name, and the bytes of plans."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lacache.cache.codecs import find_codecs
from lacache.cache.group_state import CompactionTables
from lacache.cache.sequence_state import SequenceState
from lacache.cache.static.compaction_ops import TorchCompactionOps
from lacache.cache.static.layout import CacheLayout, PoolLayout
from lacache.cache.static.pool import SlotPool
from lacache.cache.static.storage import moves_between
from lacache.common.validation import KV_DTYPES
from lacache.engine import runner as runner_module
from lacache.kernels.build import load_kernels
from lacache.models.model_info import model_info
from lacache.policies import BoundPolicy, RetrievalHeads, mean_capacity
from tests.cache.static.policy_strategies import sized_policies
from tests.cache.tiny_models import VOCAB, random_ids, tiny_model
from tests.engine.ragged import TOLERANCE, Ragged, new_runner, twin_logits
from tests.policies.sized import bind, bind_to

CPU = torch.device("cpu")
OPS = TorchCompactionOps()
MODEL = tiny_model("llama")
INFO = model_info(MODEL)
TWO_POOLS = model_info(tiny_model("smollm3"))
"""With positions=slots, as one of its layers has no positions."""
GROWING = {
    "one history": RetrievalHeads(heads=(((0, 1), (2, 0), (3, 0)),), window=0.5, sinks=2),
    "two tiers": RetrievalHeads(
        heads=(((1, 0), (4, 1)), ((0, 0), (0, 1)), ((2, 1),)), window=0.3, sinks=2, span=1
    ),
    "by slot": RetrievalHeads(heads=(((1, 1),),), window=0.6, sinks=1, positions="slots"),
}
"""Policies whose windows shrink while a history grows."""


@given(
    regions=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6)), max_size=9)
)
def test_moves_overwrite_nothing_that_is_still_needed(
    regions: list[tuple[int, int, int]],
) -> None:
    before, after, lengths = [], [], []
    last = [0, 0]
    for length, *gaps in regions:
        before.append(last[0] + gaps[0])
        after.append(last[1] + gaps[1])
        lengths.append(length)
        last = [before[-1] + length, after[-1] + length]
    rows = torch.arange(max(last))
    expected = {
        to + n: start + n
        for start, to, k in zip(before, after, lengths, strict=True)
        for n in range(k)
    }
    moves = moves_between(before, after, lengths)
    OPS.move(rows, torch.tensor(moves, dtype=torch.long).view(-1, 3))
    assert {row: int(rows[row]) for row in expected} == expected
    assert all(start != to and number for start, to, number in moves)


def numbered(pool: SlotPool, member: int, head: int, tokens: range) -> Tensor:
    """Keys or values [1, H, N, 1] that say whose they are."""
    marks = 1000 * (10 * member + torch.arange(head))[:, None] + torch.tensor(list(tokens))
    return marks[None, ..., None].float()


@given(data=st.data(), unrotated=st.booleans())
@settings(max_examples=60, deadline=None)
def test_regions_keep_their_tokens_wherever_they_are(data: Any, unrotated: bool) -> None:
    """Two sequences of any policy, with the newest slots of each group kept at a compaction."""
    bound = bind(data.draw(sized_policies(5, 2)), (2,) * 5)
    [drawn] = {pool.num_slots: pool for pool in CacheLayout(INFO, bound).pools}.values()
    pool = SlotPool(
        PoolLayout(drawn.members, drawn.num_slots, 1, 1, unrotated, drawn.regions_move),
        2,
        [find_codecs(None, torch.float32)] * len(drawn.members),
        CPU,
    )
    schedules = [group.schedule for group in bound.groups]
    tables = [CompactionTables(schedule) for schedule in schedules]
    sequences = [SequenceState(tables, INFO.query_positions(schedules)) for _ in range(2)]
    held: list[list[list[int]]] = [[[] for _ in schedules] for _ in range(2)]
    for batch_slot, sequence in enumerate(sequences):
        pool.place(batch_slot, sizes(pool, sequence))
    for turn in range(60):
        batch_slot = data.draw(st.integers(0, 1)) if turn % 8 == 0 else batch_slot
        sequence = sequences[batch_slot]
        before = [group.state.num_cached for group in sequence.groups]
        sequence.begin()
        sequence.is_changing = False
        after = [group.state.num_cached for group in sequence.groups]
        for buffers, member in zip(pool.buffers, drawn.members, strict=True):
            freed = before[member.group] - after[member.group]
            for buffer in buffers:
                slots = torch.arange(freed, before[member.group])
                for stored in buffer.tensors(batch_slot):
                    OPS.gather(stored, slots, 0)
        pool.resize(batch_slot, sizes(pool, sequence), after, OPS)
        room = sequence.room()
        new = range(sequence.num_seen, sequence.num_seen + room)
        for group, tokens in enumerate(held[batch_slot]):
            del tokens[: before[group] - after[group]]
            tokens += new
        for number, (buffers, member) in enumerate(zip(pool.buffers, drawn.members, strict=True)):
            for buffer in buffers:
                states = numbered(pool, number, len(member.heads), new)
                buffer.write(batch_slot, after[member.group], states)
        sequence.commit(room)
        check(pool, sequences, held)


def sizes(pool: SlotPool, sequence: SequenceState) -> tuple[int, ...]:
    if pool.layout.regions_move:
        return sequence.num_slots()
    return tuple(group.schedule.capacity for group in sequence.groups)


def check(pool: SlotPool, sequences: list[SequenceState], held: list[list[list[int]]]) -> None:
    for batch_slot in range(len(sequences)):
        for number, (buffers, member) in enumerate(
            zip(pool.buffers, pool.layout.members, strict=True)
        ):
            tokens = held[batch_slot][member.group]
            marks = 1000 * (10 * number + torch.arange(len(member.heads)))[:, None]
            expected = (marks + torch.tensor(tokens)).float()
            for buffer in buffers:
                assert torch.equal(buffer.read(batch_slot, len(tokens))[0, ..., 0], expected)
            columns = pool.columns(member.layer)
            first = pool.first_slots[batch_slot, columns][list(member.heads)]
            rows = first[:, None] + torch.arange(len(tokens))
            assert torch.equal(pool.keys.flat[0][rows][..., 0], expected)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_regions_fit_at_every_count_of_tokens(data: Any) -> None:
    """Also where layers with and without positions have a pool each."""
    bound = bind(data.draw(sized_policies(5, 2)), (2,) * 5)
    schedules = [group.schedule for group in bound.groups]
    steady = max(schedule.steady_from for schedule in schedules)
    for info in (INFO, TWO_POOLS):
        pools = [pool for pool in CacheLayout(info, bound).pools if pool.regions_move]
        tables = [CompactionTables(schedule) for schedule in schedules]
        sequence = SequenceState(tables, info.query_positions(schedules))
        while pools and sequence.num_seen <= steady + 50:
            sequence.begin()
            sequence.is_changing = False
            num_slots = sequence.num_slots()
            for pool in pools:
                used = sum(num_slots[m.group] * len(m.heads) for m in pool.members)
                assert used <= pool.num_slots
            sequence.commit(sequence.room())


@pytest.mark.parametrize("heads", [((1, 1),), ((0, 0), (3, 1)), ((4, 0),)])
@pytest.mark.parametrize("window", [0.5, 0.6])
def test_a_pool_of_some_layers_is_large_enough(heads: Any, window: float) -> None:
    policy = RetrievalHeads(heads=(heads,), window=window, sinks=1, positions="slots")
    runner = new_runner(tiny_model("smollm3"), (40, policy), 1, None)
    assert len(runner.cache.pools) == 2
    assert any(pool.layout.regions_move for pool in runner.cache.pools)
    for token in random_ids(400)[0].tolist():
        runner.decode([token], [0])


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_what_is_allocated_is_what_the_policy_computes(data: Any) -> None:
    bound = bind(data.draw(sized_policies(5, 2)), (2,) * 5)
    layout = CacheLayout(INFO, bound)
    vectors = 2 * mean_capacity(bound.groups) * 5 * 2
    if any(group.schedule.positions == "slots" for group in bound.groups):
        vectors *= 1.5
    else:
        vectors += sum(group.num_heads * group.schedule.sinks for group in bound.groups)
    assert layout.growing_bytes == pytest.approx(vectors * 8 * 4)
    fixed = CacheLayout(INFO, bound, shares_slots=False)
    assert not any(pool.regions_move for pool in fixed.pools)
    assert fixed.growing_bytes >= layout.growing_bytes


@pytest.mark.parametrize("policy", GROWING.values(), ids=GROWING)
def test_policies_whose_windows_shrink_reserve_what_they_hold(policy: RetrievalHeads) -> None:
    bound = bind_to(MODEL, (64, policy))
    layout = CacheLayout(INFO, bound)
    assert all(pool.regions_move for pool in layout.pools)
    held = [held_at(layout, bound, num_seen) for num_seen in range(1, 2000)]
    assert max(held) <= layout.growing_bytes <= 1.05 * max(held)


def held_at(layout: CacheLayout, bound: BoundPolicy, num_seen: int) -> int:
    cached = [min(num_seen, group.schedule.limit(num_seen)) for group in bound.groups]
    return layout.held_bytes(num_seen, cached)


@pytest.mark.parametrize("kernels", [False, True], ids=["torch", "kernels"])
@pytest.mark.parametrize("policy", GROWING.values(), ids=GROWING)
def test_sequences_are_the_twins_while_regions_move(policy: RetrievalHeads, kernels: bool) -> None:
    """Three sequences of other lengths, one cleared and one forked on the way."""
    if kernels:
        load_kernels()
    sized = (48, policy)
    runner = new_runner(MODEL, sized, 3, None, kernels=kernels)
    assert all(pool.layout.regions_move for pool in runner.cache.pools)
    ragged = Ragged(runner, seed=0)
    for length in (40, 5, 30, 13):
        ragged.read(0, length)
        ragged.read(2, 11)
        ragged.step([0, 2])
    ragged.read(1, 70)
    ragged.read(0, 40)
    for active in ([1], [0, 1], [2], [0, 1, 2]):
        for _ in range(7):
            ragged.step(active)
    ragged.clear(1)
    ragged.fork(0, 1)
    for _ in range(30):
        ragged.step([0, 1])
    ragged.check(MODEL, sized)


@pytest.mark.parametrize("kv_dtype", [None, *sorted(KV_DTYPES)])
@pytest.mark.parametrize("policy", GROWING.values(), ids=GROWING)
def test_regions_that_move_change_no_bit(
    policy: RetrievalHeads, kv_dtype: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against regions that each have room for the most, as on a GPU."""
    sized = (48, policy)
    moving = new_runner(MODEL, sized, 3, None, kv_dtype)
    monkeypatch.setattr(runner_module, "shares_slots_on", lambda device: False)
    fixed = new_runner(MODEL, sized, 3, None, kv_dtype)
    assert fixed.cache.num_bytes > moving.cache.num_bytes
    for token in random_ids(150)[0].tolist():
        found, expected = (
            each.decode([token, 0, (token + 1) % VOCAB], [0, 2])[[0, 2]] for each in (moving, fixed)
        )
        assert torch.equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("kv_dtype", [None, "int4"])
def test_compiled_steps_are_the_same_while_regions_move(
    kv_dtype: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By kernels that read regions where they are, against regions that do not move."""
    load_kernels()
    model = tiny_model("llama", num_hidden_layers=2)
    sized = (48, RetrievalHeads(heads=(((0, 1),),), window=0.5, sinks=2))
    moving = new_runner(model, sized, 1, "inductor", kv_dtype, kernels=True, fuse=False)
    monkeypatch.setattr(runner_module, "shares_slots_on", lambda device: False)
    fixed = new_runner(model, sized, 1, "inductor", kv_dtype, kernels=True, fuse=False)
    for token in random_ids(150)[0].tolist():
        assert torch.equal(*(each.decode([token], [0]) for each in (moving, fixed)))
    assert moving.compile_seconds is not None


def test_a_long_sequence_is_the_twins() -> None:
    """From the first compaction until the windows are as small as they get, and on."""
    sized = (32, GROWING["two tiers"])
    runner = new_runner(MODEL, sized, 1, None)
    ids = random_ids(300)
    found = torch.stack([runner.decode([token], [0])[0] for token in ids[0].tolist()])
    steady = max(group.schedule.steady_from for group in runner.layout.bound.groups)
    assert steady < 250
    expected = twin_logits(MODEL, ids, sized)[0]
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
