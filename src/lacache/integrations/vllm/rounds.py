"""A step of many sequences, cut at their compactions.

Tokens of a sequence that come in before and after a compaction cannot be attended to at once. So a
step is a number of rounds: in each, those sequences that reach a compaction run it, and then write
and attend to the tokens up to the next. Most steps have one round.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np

from lacache.integrations.vllm.arrays import Integers, ScheduleArrays


@final
@dataclass(frozen=True)
class Moves:
    """The compactions of a round, over all sequences that run one.

    Args:
        sources: [patterns, moved], page slots.
        targets: [moved], page slots.
        positions: [moved], slots within the sequences that `targets` are: where keys turn to.
    """

    sources: Integers
    targets: Integers
    positions: Integers


@final
@dataclass(frozen=True)
class Round:
    """Tokens of several sequences that attend to their own caches at once.

    Args:
        tokens: [tokens], which of the step's tokens come in; increasing within each sequence.
        sequences: [sequences], which of the step's sequences they are of.
        starts: [sequences + 1], where the tokens of each start in `tokens`.
        lengths: [sequences], slots in use after they came in.
        positions: [tokens], their slots within the sequence.
        slots: [tokens], page slots that they are written to.
        moves: what is compacted first, if anything is.
    """

    tokens: Integers
    sequences: Integers
    starts: Integers
    lengths: Integers
    positions: Integers
    slots: Integers
    moves: Moves | None


def cut_into_rounds(
    schedule: ScheduleArrays,
    num_seen: Integers,
    starts: Integers,
    pages: Integers,
    page_size: int,
) -> Iterator[Round]:
    """The rounds of a step.

    Args:
        schedule: of every sequence.
        num_seen: [sequences], tokens of each that came in before this step.
        starts: [sequences + 1], where the tokens of each start among the step's tokens.
        pages: [sequences, pages], the pages that each holds, in order of slots.
        page_size: slots in a page. Page slot `p * page_size + i` is slot i of page p.
    """
    counts = np.diff(starts)
    sequence = np.repeat(np.arange(len(counts)), counts)
    if not len(sequence):
        return
    number = np.arange(len(sequence)) - starts[:-1][sequence]
    positions, done, compaction = schedule.locate(num_seen[sequence] + number)
    slots = pages[sequence, positions // page_size] * page_size + positions % page_size
    # A sequence's first tokens are in round 0, with or without a compaction before them.
    rounds = done - done[starts[:-1][sequence]]
    order = np.argsort(rounds, kind="stable")
    sizes = np.bincount(rounds)
    for tokens in np.split(order, np.cumsum(sizes)[:-1]):
        firsts = np.flatnonzero(np.diff(sequence[tokens], prepend=-1))
        ends = np.append(firsts[1:], len(tokens))
        sequences = sequence[tokens[firsts]]
        yield Round(
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
    """The compactions of sequences with these pages; -1 is none."""
    sources, targets, positions = [], [], []
    for row in np.flatnonzero(compactions >= 0):
        first, moved = schedule.moves(int(compactions[row]))
        to = np.arange(first, first + moved.shape[1])
        sources.append(pages[row][moved // page_size] * page_size + moved % page_size)
        targets.append(pages[row][to // page_size] * page_size + to % page_size)
        positions.append(to)
    if not sources:
        return None
    return Moves(
        np.concatenate(sources, axis=1), np.concatenate(targets), np.concatenate(positions)
    )
