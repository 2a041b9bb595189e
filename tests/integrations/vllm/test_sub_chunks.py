"""Sub-chunks of a step, compared with sequences that take one token at a time."""

import copy
from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lacache.integrations.vllm.positions import OriginalPositions
from lacache.integrations.vllm.schedule_arrays import Integers, ScheduleArrays
from lacache.integrations.vllm.sub_chunks import SubChunk, split_step
from lacache.integrations.vllm.worker_heads import WorkerHeads
from lacache.policies import BoundGroup, Schedule, Streaming
from tests.integrations.vllm.slow_positions import SlowPositions
from tests.integrations.vllm.strategies import bound_groups, whole
from tests.policies.strategies import ladders

PAGE = 8
EMPTY = -1


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    if draw(st.booleans()):
        return draw(ladders(most_capacity=40)).schedule()
    evict_batch = draw(st.integers(1, 9))
    sinks = draw(st.integers(0, 4))
    capacity = sinks + evict_batch + draw(st.integers(0, 20))
    positions = draw(st.sampled_from(["original", "slots"]))
    policy = Streaming(sinks=sinks, evict_batch=evict_batch, positions=positions)
    return policy.schedule(2, capacity)


@given(schedule=schedules(), start=st.integers(0, 300), length=st.integers(1, 120))
def test_slots_match_counting(schedule: Schedule, start: int, length: int) -> None:
    slots, done, compactions = ScheduleArrays(schedule).locate(np.arange(start, start + length))
    slow = SlowPositions([schedule], 10_000)
    (kept,) = slow.kept
    kept.advance(start)
    expected = []
    for _ in range(length):
        is_due = schedule.is_full(kept.state)
        kept.settle()
        expected.append((kept.state.num_cached, kept.num_compactions, is_due))
        kept.advance(1)
    assert list(zip(slots, done, compactions > 0, strict=True)) == expected
    assert (compactions[compactions > 0] == done[compactions > 0]).all()


@settings(max_examples=100, deadline=None)
@given(
    groups=bound_groups(),
    trained_length=st.sampled_from([10, 60, 150, 10_000]),
    most=st.sampled_from([1, 7, 40]),
    steps=st.lists(st.lists(st.integers(0, 40), min_size=3, max_size=3), min_size=1, max_size=8),
    far=st.sampled_from([0, 0, 60, 200, 700]),
    stages=st.sampled_from([1, 1, 2]),
    seed=st.integers(0, 1000),
)
def test_pages_hold_the_kept_tokens(
    groups: tuple[BoundGroup, ...],
    trained_length: int,
    most: int,
    steps: list[list[int]],
    far: int,
    stages: int,
    seed: int,
) -> None:
    """Three sequences in scattered pages, the second far ahead, chunks of any length."""
    every = whole(groups)
    # A stage of a pipeline has some of the layers, and knows of the heads of the others.
    first = len(every) // 2 if stages == 2 else 0
    shard = {layer: every[layer] for layer in range(first, len(every))}
    heads = WorkerHeads(groups, shard, PAGE, most, trained_length)
    pages = 1 + np.random.default_rng(seed).permutation(3 * heads.num_pages).reshape(3, -1)
    memory = SlowMemory(heads, 3 * heads.num_pages + 1, is_original=heads.original is not None)
    schedules = [group.schedule for group in groups]
    sequences = [SlowPositions(schedules, trained_length) for _ in range(3)]
    seen = np.zeros(3, dtype=np.int64)
    for counts in [*([0, min(most, far - n), 0] for n in range(0, far, most)), *steps]:
        counts = [min(most, count) for count in counts]
        starts = np.cumsum([0, *counts])
        numbers = np.concatenate([seen[i] + np.arange(n) for i, n in enumerate(counts)])
        sub_chunks = list(split_step(heads, seen, starts, pages))
        inserted = [token for one in sub_chunks for token in one.tokens.tolist()]
        assert sorted(inserted) == list(range(sum(counts)))
        # As vLLM runs a step: layer by layer.
        for layer in range(len(shard)):
            anew = [copy_of(sequence) for sequence in sequences]
            for sub_chunk in sub_chunks:
                memory.run(sub_chunk, layer, numbers)
                for index, sequence in enumerate(sub_chunk.sequences):
                    own = slice(*sub_chunk.starts[index : index + 2])
                    expected = [anew[sequence].insert() for _ in sub_chunk.tokens[own]]
                    if heads.original is not None:
                        assert sub_chunk.positions[0, own].tolist() == expected
                    memory.check(groups, anew[sequence], pages[sequence], sub_chunk, index, layer)
        sequences = anew
        seen = seen + counts


def copy_of(sequence: SlowPositions) -> SlowPositions:
    return copy.deepcopy(sequence)


class SlowMemory:
    """Values, keys and positions in page slots; copies of unrotated keys in others."""

    def __init__(self, heads: WorkerHeads, num_pages: int, *, is_original: bool) -> None:
        self.heads = heads
        self.is_original = is_original
        # By slot: the head whose token it is, the token, and where its key stands.
        self.slots = np.full((3, num_pages * PAGE), EMPTY)
        # By copy: head and token. A page has either.
        self.copies = np.full((2, 2 * num_pages * PAGE), EMPTY)

    def run(self, sub_chunk: SubChunk, layer: int, numbers: Integers) -> None:
        """Compact and write, in one layer."""
        moves, sinks = sub_chunk.moves[layer], sub_chunk.sinks[layer]
        if moves is not None:
            moved = self.slots[:, moves.sources]
            if moves.lower is not None:
                moved[2] -= moves.lower
            if moves.copies is not None:
                sources, targets, positions = moves.copies
                self.copies[:, targets] = self.copies[:, sources]
                assert (moved[:2] == self.copies[:, targets]).all()
                moved[2] = positions
            self.slots[:, moves.targets] = moved
        if sinks is not None:
            assert (self.slots[:2, sinks.slots] == self.copies[:, sinks.copies]).all()
            self.slots[2, sinks.slots] = sinks.positions
        tokens = numbers[sub_chunk.tokens]
        own = list(self.heads.layers.values())[layer]
        for head in range(own.start, own.stop):
            positions = sub_chunk.positions[0 if self.is_original else head]
            owner = np.full(len(tokens), head)
            self.slots[:, sub_chunk.slots[head]] = owner, tokens, positions
            saved = tokens[sub_chunk.saved]
            self.copies[:, sub_chunk.copies[head]] = owner[: len(saved)], saved

    def check(
        self,
        groups: Sequence[BoundGroup],
        sequence: SlowPositions,
        pages: Integers,
        sub_chunk: SubChunk,
        index: int,
        layer: int,
    ) -> None:
        """A layer attends to the tokens that the schedule keeps, in order and in place."""
        number = list(self.heads.layers)[layer]
        own = self.heads.layers[number]
        for head in range(own.start, own.stop):
            group = next(g for g in range(len(groups)) if head in self.heads.groups[g].heads)
            pattern = groups[group].pattern(number)
            tokens = sequence.kept[group].by_pattern[pattern]
            assert sub_chunk.lengths[head, index] == len(tokens)
            slots = np.arange(len(tokens))
            places = pages[self.heads.tables[head][slots // PAGE]] * PAGE + slots % PAGE
            expected = slots.tolist()
            if self.is_original:
                expected = sequence.standing(group, pattern)
            held = [[head] * len(tokens), tokens, expected]
            assert self.slots[:, places].tolist() == held


@given(schedule=schedules(), trained_length=st.integers(1, 200), far=st.integers(0, 20_000))
def test_bases_after_many_tokens(schedule: Schedule, trained_length: int, far: int) -> None:
    """Positions stay within the trained length, or the capacity, however long the sequence."""
    arrays = ScheduleArrays(schedule)
    tokens = np.arange(far, far + 500)
    slots, _, _ = arrays.locate(tokens)
    positions = tokens - OriginalPositions([arrays], trained_length).bases(tokens)
    assert (positions >= slots).all()
    assert positions.max() < max(trained_length, schedule.capacity)


def test_few_tables_for_a_long_text() -> None:
    """Histories between renumberings recur, and are computed once."""
    schedule = Streaming(sinks=2, evict_batch=5).schedule(2, 40)
    arrays = ScheduleArrays(schedule)
    original = OriginalPositions([arrays], trained_length=100)
    for compaction in range(1, 2_000):
        seen = arrays.seen_at(compaction)
        original.after(0, seen, compaction, arrays.count(seen)[1])
    assert original._history.cache_info().currsize <= 3
