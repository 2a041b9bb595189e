"""Sub-chunks of a step, compared with sequences that take one token at a time."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lacache.integrations.vllm.positions import OriginalPositions
from lacache.integrations.vllm.schedule_arrays import Integers, ScheduleArrays
from lacache.integrations.vllm.sub_chunks import Moves, SubChunk, copies_per_page, split_step
from lacache.policies import KeptTokens, Schedule, Streaming
from tests.integrations.vllm.slow_positions import SlowPositions
from tests.policies.strategies import ladders

PAGE = 8


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
    kept = KeptTokens(schedule)
    kept.advance(start)
    expected = []
    for _ in range(length):
        is_due = schedule.is_full(kept.state)
        kept.settle()
        expected.append((kept.state.num_cached, kept.num_compactions, is_due))
        kept.advance(1)
    assert list(zip(slots, done, compactions > 0, strict=True)) == expected
    assert (compactions[compactions > 0] == done[compactions > 0]).all()


@settings(max_examples=60, deadline=None)
@given(
    schedule=schedules(),
    trained_length=st.sampled_from([10, 41, 100, 10_000]),
    steps=st.lists(st.lists(st.integers(0, 40), min_size=3, max_size=3), min_size=1, max_size=6),
    far=st.sampled_from([0, 0, 200, 900]),
    seed=st.integers(0, 1000),
)
def test_pages_hold_the_kept_tokens(
    schedule: Schedule, trained_length: int, steps: list[list[int]], far: int, seed: int
) -> None:
    """Three sequences in scattered pages, the second far ahead, chunks of any length."""
    arrays = ScheduleArrays(schedule)
    is_original = schedule.positions == "original"
    original = OriginalPositions(arrays, trained_length) if is_original else None
    width = -(-schedule.capacity // PAGE)
    pages = 1 + np.random.default_rng(seed).permutation(3 * width).reshape(3, width)
    memory = SlowMemory(schedule, 3 * width + 1)
    sequences = [SlowPositions(schedule, trained_length) for _ in range(3)]
    seen = np.zeros(3, dtype=np.int64)
    for counts in [[0, far, 0], *steps]:
        starts = np.cumsum([0, *counts])
        numbers = np.concatenate([seen[i] + np.arange(n) for i, n in enumerate(counts)])
        inserted: list[int] = []
        for sub_chunk in split_step(arrays, original, seen, starts, pages, PAGE):
            memory.run(sub_chunk, numbers)
            inserted += sub_chunk.tokens.tolist()
            for index, sequence in enumerate(sub_chunk.sequences):
                own = slice(*sub_chunk.starts[index : index + 2])
                expected = [sequences[sequence].insert() for _ in sub_chunk.tokens[own]]
                if is_original:
                    assert sub_chunk.positions[own].tolist() == expected
                else:
                    length = int(sub_chunk.lengths[index])
                    new = list(range(length - len(expected), length))
                    assert sub_chunk.positions[own].tolist() == new
                memory.check(sequences[sequence], pages[sequence], int(sub_chunk.lengths[index]))
        assert sorted(inserted) == list(range(sum(counts)))
        seen = seen + counts


class SlowMemory:
    """Page slots of token numbers and positions, one layer for each pattern."""

    def __init__(self, schedule: Schedule, num_pages: int) -> None:
        self.schedule = schedule
        self.patterns = sorted(set(schedule.patterns))
        # Values, stored keys (token and position) and unrotated keys, by token.
        self.values = np.full((len(self.patterns), num_pages * PAGE), -1)
        self.keys = self.values.copy()
        self.positions = self.values.copy()
        num_copies = num_pages * copies_per_page(schedule, PAGE)
        self.unrotated = np.full((len(self.patterns), num_copies), -1)

    def run(self, sub_chunk: SubChunk, numbers: Integers) -> None:
        """Compact and write."""
        if sub_chunk.moves is not None:
            self._move(sub_chunk.moves)
        if (sinks := sub_chunk.sinks) is not None:
            self.keys[:, sinks.slots] = self.unrotated[:, sinks.copies]
            self.positions[:, sinks.slots] = sinks.positions
        tokens = numbers[sub_chunk.tokens]
        self.values[:, sub_chunk.slots] = tokens
        self.keys[:, sub_chunk.slots] = tokens
        self.positions[:, sub_chunk.slots] = sub_chunk.positions
        self.unrotated[:, sub_chunk.copies] = tokens[sub_chunk.saved]

    def _move(self, moves: Moves) -> None:
        sources, targets = moves.sources, moves.targets
        for states in (self.values, self.keys, self.positions):
            states[:, targets] = np.take_along_axis(states, sources, axis=1)
        if moves.lower is not None:
            assert (moves.lower >= 0).all()
            self.positions[:, targets] -= moves.lower
        if self.schedule.positions == "slots":
            self.unrotated[:, targets] = np.take_along_axis(self.unrotated, sources, axis=1)
            self.keys[:, targets] = self.unrotated[:, targets]
            self.positions[:, targets] = moves.positions

    def check(self, sequence: SlowPositions, pages: Integers, length: int) -> None:
        """A sequence attends to the tokens that the schedule keeps, in order and in place."""
        slots = np.arange(length)
        places = pages[slots // PAGE] * PAGE + slots % PAGE
        for index, pattern in enumerate(self.patterns):
            tokens = sequence.kept.by_pattern[pattern]
            assert self.values[index, places].tolist() == tokens
            assert self.keys[index, places].tolist() == tokens
            expected = slots.tolist()
            if self.schedule.positions == "original":
                expected = sequence.standing(pattern)
            assert self.positions[index, places].tolist() == expected


@given(schedule=schedules(), trained_length=st.integers(1, 200), far=st.integers(0, 100_000))
def test_bases_after_many_tokens(schedule: Schedule, trained_length: int, far: int) -> None:
    """Positions stay within the trained length, or the capacity, however long the sequence."""
    arrays = ScheduleArrays(schedule)
    tokens = np.arange(far, far + 500)
    slots, done, _ = arrays.locate(tokens)
    positions = tokens - OriginalPositions(arrays, trained_length).bases(done)
    assert (positions >= slots).all()
    assert positions.max() < max(trained_length, schedule.capacity)


def test_one_table_for_an_endless_text() -> None:
    """What is stored of a sequence of any length is bounded, as renumberings recur."""
    schedule = Streaming(sinks=2, evict_batch=5).schedule(2, 40)
    original = OriginalPositions(ScheduleArrays(schedule), trained_length=100)
    near, far = original.after(15)[0], original.after(15 + 13 * 10**9)[0]
    assert near.shape == (1, 2)
    assert (near == far).all()
    assert len(original._renumbered) <= 2
