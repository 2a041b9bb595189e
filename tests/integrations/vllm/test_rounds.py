"""Rounds of a step, against sequences that take one token at a time."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lacache.integrations.vllm.arrays import ScheduleArrays
from lacache.integrations.vllm.rounds import cut_into_rounds
from lacache.policies import Streaming
from lacache.policies.kept import KeptTokens, kept_after
from lacache.policies.schedule import Policy
from tests.policies.strategies import ladders

PAGE = 8


@st.composite
def policies(draw: st.DrawFn) -> tuple[Policy, int]:
    if draw(st.booleans()):
        return draw(ladders(most_capacity=40))
    evict_batch = draw(st.integers(1, 9))
    sinks = draw(st.integers(0, 4))
    return Streaming(capacity=sinks + evict_batch + draw(st.integers(0, 20)), sinks=sinks), 2


@given(chosen=policies(), start=st.integers(0, 300), length=st.integers(1, 120))
def test_tokens_go_where_counting_puts_them(
    chosen: tuple[Policy, int], start: int, length: int
) -> None:
    policy, num_layers = chosen
    schedule = policy.bind(num_layers)
    slots, done, compactions = ScheduleArrays(schedule).locate(np.arange(start, start + length))
    kept = KeptTokens(schedule)
    kept.read(start)
    expected = []
    for _ in range(length):
        is_due = schedule.is_full(kept.state)
        kept.settle()
        expected.append((kept.state.num_cached, is_due))
        kept.read(1)
    assert list(zip(slots, compactions >= 0, strict=True)) == expected
    assert (np.diff(done) == (compactions >= 0)[1:]).all()


@settings(max_examples=60)
@given(
    chosen=policies(),
    steps=st.lists(st.lists(st.integers(0, 40), min_size=3, max_size=3), min_size=1, max_size=6),
    far=st.sampled_from([0, 0, 1_000, 123_456]),
    seed=st.integers(0, 1000),
)
def test_pages_hold_the_tokens_that_are_kept(
    chosen: tuple[Policy, int], steps: list[list[int]], far: int, seed: int
) -> None:
    """Three sequences in scattered pages, the second far ahead, chunks of any length."""
    policy, num_layers = chosen
    schedule = policy.bind(num_layers)
    arrays = ScheduleArrays(schedule)
    width = -(-arrays.capacity // PAGE)
    pages = 1 + np.random.default_rng(seed).permutation(3 * width).reshape(3, width)
    seen = np.array([0, far, 0])
    content = np.full((num_layers, (3 * width + 1) * PAGE), -1)
    ahead = kept_after(schedule, far)
    for layer, pattern in enumerate(schedule.patterns):
        for slot, token in enumerate(ahead.by_pattern[pattern]):
            content[layer, pages[1, slot // PAGE] * PAGE + slot % PAGE] = token
    for counts in steps:
        starts = np.cumsum([0, *counts])
        numbers = np.concatenate([seen[i] + np.arange(n) for i, n in enumerate(counts)])
        came_in: list[int] = []
        for piece in cut_into_rounds(arrays, seen, starts, pages, PAGE):
            if piece.moves is not None:
                rows = piece.moves.sources[list(arrays.row_of_layer)]
                content[:, piece.moves.targets] = np.take_along_axis(content, rows, axis=1)
                spots = piece.moves.targets % PAGE
                assert (piece.moves.positions % PAGE == spots).all()
            content[:, piece.slots] = numbers[piece.tokens]
            came_in += piece.tokens.tolist()
            for row, sequence in enumerate(piece.sequences):
                own = piece.tokens[piece.starts[row] : piece.starts[row + 1]]
                check_sequence(
                    schedule, content, pages[sequence], int(numbers[own[-1]]) + 1, piece, row
                )
        assert sorted(came_in) == list(range(sum(counts)))
        seen = seen + counts


def check_sequence(schedule, content, pages, num_seen, piece, row) -> None:  # type: ignore[no-untyped-def]
    """What a sequence attends to is what the schedule keeps, in its order."""
    kept = kept_after(schedule, num_seen)
    length = int(piece.lengths[row])
    assert length == kept.state.num_cached
    slots = np.arange(length)
    held = content[:, pages[slots // PAGE] * PAGE + slots % PAGE]
    for layer, pattern in enumerate(schedule.patterns):
        assert held[layer].tolist() == kept.by_pattern[pattern]
    own = slice(piece.starts[row], piece.starts[row + 1])
    assert piece.positions[own].tolist() == list(range(length - (own.stop - own.start), length))
