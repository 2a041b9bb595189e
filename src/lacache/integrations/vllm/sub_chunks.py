"""Split a step of vLLM into sub-chunks, in plain numpy.

A step brings each sequence a chunk of tokens. Tokens before and after a compaction see different
caches, so chunks are split there. Sub-chunk i of a step holds sub-chunk i of every sequence: the
sequences whose sub-chunk starts with a compaction run it, then all write and attend. Most steps
have one sub-chunk.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
from numpy.typing import NDArray

from lacache.policies.schedule import Schedule, State, Timetable

Integers = NDArray[np.int64]


@final
class ScheduleArrays:
    """A bounded schedule as arrays: the slot of any token, and what each compaction moves.

    Args:
        schedule: of every sequence.
    """

    def __init__(self, schedule: Schedule) -> None:
        timetable = Timetable(schedule)
        self._schedule = schedule
        self._states = timetable.compactions
        self._seen = np.array([state.num_seen for state in self._states], dtype=np.int64)
        self._left = np.array(
            [schedule.compact(state).num_cached for state in self._states], dtype=np.int64
        )
        self._start = timetable.period_start.num_seen
        self._period = timetable.period_tokens
        self._per_period = int((self._seen >= self._start).sum())
        self._moves: dict[int, tuple[int, Integers]] = {}

    @property
    def capacity(self) -> int:
        """Most slots that a sequence ever uses."""
        return self._schedule.capacity

    @cached_property
    def pattern_of_layer(self) -> tuple[int, ...]:
        """Index of each layer's pattern in the arrays of `moves`."""
        indices = {pattern: index for index, pattern in enumerate(self._patterns)}
        return tuple(indices[pattern] for pattern in self._schedule.patterns)

    @cached_property
    def _patterns(self) -> tuple[int, ...]:
        return tuple(sorted(set(self._schedule.patterns)))

    def locate(self, tokens: Integers) -> tuple[Integers, Integers, Integers]:
        """Locate tokens in the cache at the moment they are inserted.

        Args:
            tokens: [N], the number of tokens seen before each.

        Returns:
            The slot of each token [N]; the number of compactions before it [N]; and the compaction
            (as `moves` numbers them) that runs directly before it, or -1 [N].
        """
        cycles = np.maximum(tokens - self._start, 0) // self._period
        seen = tokens - cycles * self._period
        last = np.searchsorted(self._seen, seen, side="right") - 1
        slots = np.where(last < 0, seen, self._left[last] + seen - self._seen[last])
        is_first = (last >= 0) & (seen == self._seen[last])
        return slots, last + 1 + cycles * self._per_period, np.where(is_first, last, -1)

    def moves(self, compaction: int) -> tuple[int, Integers]:
        """Return the moves of a compaction.

        Returns:
            The first slot that changes in any pattern; and for this slot and all after it the slot
            that its content comes from, per pattern: [patterns, moved].
        """
        if compaction not in self._moves:
            state = self._states[compaction]
            sources = np.stack([self._kept(state, pattern) for pattern in self._patterns])
            stays = (sources == np.arange(sources.shape[1])).all(axis=0)
            first = len(stays) if stays.all() else int(stays.argmin())
            self._moves[compaction] = (first, sources[:, first:])
        return self._moves[compaction]

    def _kept(self, state: State, pattern: int) -> Integers:
        is_kept = np.ones(state.num_cached, dtype=bool)
        for start, stop in self._schedule.evicted_slots(state, pattern):
            is_kept[start:stop] = False
        return np.flatnonzero(is_kept)


@final
@dataclass(frozen=True)
class Moves:
    """Moves of the compactions that start a sub-chunk, over all sequences that run one.

    Args:
        sources: [patterns, moved], page slots.
        targets: [moved], page slots.
        positions: [moved], slots of `targets` within their sequences; the keys' new positions.
    """

    sources: Integers
    targets: Integers
    positions: Integers


@final
@dataclass(frozen=True)
class SubChunk:
    """Tokens of several sequences that are written and attended to together.

    Args:
        tokens: [tokens], indices among the step's tokens; increasing within each sequence.
        sequences: [sequences], indices among the step's sequences.
        starts: [sequences + 1], where the tokens of each sequence start in `tokens`.
        lengths: [sequences], slots in use after the tokens are written.
        positions: [tokens], slots within their sequences.
        slots: [tokens], page slots to write to.
        moves: compactions to run first, if any.
    """

    tokens: Integers
    sequences: Integers
    starts: Integers
    lengths: Integers
    positions: Integers
    slots: Integers
    moves: Moves | None


def split_step(
    schedule: ScheduleArrays,
    num_seen: Integers,
    starts: Integers,
    pages: Integers,
    page_size: int,
) -> Iterator[SubChunk]:
    """Split a step into sub-chunks, in the order in which they run.

    Args:
        schedule: of every sequence.
        num_seen: [sequences], tokens of each sequence before this step.
        starts: [sequences + 1], where the tokens of each start among the step's tokens.
        pages: [sequences, pages], the pages of each sequence, in order of slots.
        page_size: slots in a page. Page slot `p * page_size + i` is slot i of page p.
    """
    counts = np.diff(starts)
    sequence = np.repeat(np.arange(len(counts)), counts)
    if not len(sequence):
        return
    offset = np.arange(len(sequence)) - starts[:-1][sequence]
    positions, done, compaction = schedule.locate(num_seen[sequence] + offset)
    slots = pages[sequence, positions // page_size] * page_size + positions % page_size
    # The first tokens of a sequence are in sub-chunk 0, with or without a compaction before them.
    sub_chunk = done - done[starts[:-1][sequence]]
    order = np.argsort(sub_chunk, kind="stable")
    sizes = np.bincount(sub_chunk)
    for tokens in np.split(order, np.cumsum(sizes)[:-1]):
        firsts = np.flatnonzero(np.diff(sequence[tokens], prepend=-1))
        ends = np.append(firsts[1:], len(tokens))
        sequences = sequence[tokens[firsts]]
        yield SubChunk(
            tokens=tokens,
            sequences=sequences,
            starts=np.append(firsts, len(tokens)),
            lengths=positions[tokens[ends - 1]] + 1,
            positions=positions[tokens],
            slots=slots[tokens],
            moves=_moves(schedule, compaction[tokens[firsts]], pages[sequences], page_size),
        )


def _moves(
    schedule: ScheduleArrays, compactions: Integers, pages: Integers, page_size: int
) -> Moves | None:
    """Join the moves of one compaction per sequence; -1 is none."""
    sources, targets, positions = [], [], []
    for sequence in np.flatnonzero(compactions >= 0):
        first, moved = schedule.moves(int(compactions[sequence]))
        to = np.arange(first, first + moved.shape[1])
        held = pages[sequence]
        sources.append(held[moved // page_size] * page_size + moved % page_size)
        targets.append(held[to // page_size] * page_size + to % page_size)
        positions.append(to)
    if not sources:
        return None
    return Moves(
        np.concatenate(sources, axis=1), np.concatenate(targets), np.concatenate(positions)
    )
