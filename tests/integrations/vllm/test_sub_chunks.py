"""Sub-chunks of a step, compared with sequences that take one token at a time."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lacache.integrations.vllm.sub_chunks import Integers, ScheduleArrays, SubChunk, split_step
from lacache.policies import KeptTokens, Schedule, Streaming, kept_after
from tests.policies.strategies import ladders

PAGE = 8


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    if draw(st.booleans()):
        return draw(ladders(most_capacity=40)).schedule()
    evict_batch = draw(st.integers(1, 9))
    sinks = draw(st.integers(0, 4))
    capacity = sinks + evict_batch + draw(st.integers(0, 20))
    return Streaming(sinks=sinks, evict_batch=evict_batch).schedule(2, capacity)


@given(schedule=schedules(), start=st.integers(0, 300), length=st.integers(1, 120))
def test_slots_match_counting(schedule: Schedule, start: int, length: int) -> None:
    slots, done, compactions = ScheduleArrays(schedule).locate(np.arange(start, start + length))
    kept = KeptTokens(schedule)
    kept.advance(start)
    expected = []
    for _ in range(length):
        is_due = schedule.is_full(kept.state)
        kept.settle()
        expected.append((kept.state.num_cached, is_due))
        kept.advance(1)
    assert list(zip(slots, compactions >= 0, strict=True)) == expected
    assert (np.diff(done) == (compactions >= 0)[1:]).all()


@settings(max_examples=60)
@given(
    schedule=schedules(),
    steps=st.lists(st.lists(st.integers(0, 40), min_size=3, max_size=3), min_size=1, max_size=6),
    far=st.sampled_from([0, 0, 1_000, 123_456]),
    seed=st.integers(0, 1000),
)
def test_pages_hold_the_kept_tokens(
    schedule: Schedule, steps: list[list[int]], far: int, seed: int
) -> None:
    """Three sequences in scattered pages, the second far ahead, chunks of any length."""
    arrays = ScheduleArrays(schedule)
    width = -(-arrays.capacity // PAGE)
    pages = 1 + np.random.default_rng(seed).permutation(3 * width).reshape(3, width)
    seen = np.array([0, far, 0])
    content = np.full((len(schedule.patterns), (3 * width + 1) * PAGE), -1)
    kept_far = kept_after(schedule, far)
    for layer, pattern in enumerate(schedule.patterns):
        for slot, token in enumerate(kept_far.by_pattern[pattern]):
            content[layer, pages[1, slot // PAGE] * PAGE + slot % PAGE] = token
    for counts in steps:
        starts = np.cumsum([0, *counts])
        numbers = np.concatenate([seen[i] + np.arange(n) for i, n in enumerate(counts)])
        inserted: list[int] = []
        for sub_chunk in split_step(arrays, seen, starts, pages, PAGE):
            if sub_chunk.moves is not None:
                sources = sub_chunk.moves.sources[list(arrays.pattern_of_layer)]
                content[:, sub_chunk.moves.targets] = np.take_along_axis(content, sources, axis=1)
                spots = sub_chunk.moves.targets % PAGE
                assert (sub_chunk.moves.positions % PAGE == spots).all()
            content[:, sub_chunk.slots] = numbers[sub_chunk.tokens]
            inserted += sub_chunk.tokens.tolist()
            for index, sequence in enumerate(sub_chunk.sequences):
                own = sub_chunk.tokens[sub_chunk.starts[index] : sub_chunk.starts[index + 1]]
                check_sequence(
                    schedule, content, pages[sequence], int(numbers[own[-1]]) + 1, sub_chunk, index
                )
        assert sorted(inserted) == list(range(sum(counts)))
        seen = seen + counts


def check_sequence(
    schedule: Schedule,
    content: Integers,
    pages: Integers,
    num_seen: int,
    sub_chunk: SubChunk,
    index: int,
) -> None:
    """A sequence attends to the tokens that the schedule keeps, in order."""
    kept = kept_after(schedule, num_seen)
    length = int(sub_chunk.lengths[index])
    assert length == kept.state.num_cached
    slots = np.arange(length)
    held = content[:, pages[slots // PAGE] * PAGE + slots % PAGE]
    for layer, pattern in enumerate(schedule.patterns):
        assert held[layer].tolist() == kept.by_pattern[pattern]
    own = slice(sub_chunk.starts[index], sub_chunk.starts[index + 1])
    assert sub_chunk.positions[own].tolist() == list(range(length - (own.stop - own.start), length))
