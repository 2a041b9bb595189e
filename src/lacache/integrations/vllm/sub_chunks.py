"""Split a step of vLLM into sub-chunks, in plain numpy.

A step brings each sequence a chunk of tokens. Tokens before and after a compaction see different
caches, so chunks are split there. Sub-chunk i of a step holds sub-chunk i of every sequence: the
sequences whose sub-chunk starts with a compaction run it, then all write and attend. Most steps
have one sub-chunk.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np

from lacache.integrations.vllm.positions import OriginalPositions
from lacache.integrations.vllm.schedule_arrays import Integers, ScheduleArrays
from lacache.policies.schedule import Schedule


@final
@dataclass(frozen=True)
class Moves:
    """Moves of the compactions that start a sub-chunk, over all sequences that run one.

    Args:
        sources: [patterns, moved], page slots.
        targets: [moved], page slots.
        positions: [patterns, moved], that unrotated keys, which move too, are rotated to. None with
            original positions, where rotated keys move.
        lower: [patterns, moved], by how much lower each key stands than before; None for 0.
    """

    sources: Integers
    targets: Integers
    positions: Integers | None
    lower: Integers | None


@final
@dataclass(frozen=True)
class SinkMoves:
    """Sinks that are rotated anew after a compaction, over all sequences that run one.

    Args:
        copies: [sinks], copy slots of their unrotated keys.
        slots: [sinks], page slots.
        positions: [patterns, sinks].
    """

    copies: Integers
    slots: Integers
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
        positions: [tokens], that queries and keys are rotated to.
        slots: [tokens], page slots to write to.
        saved: [saved], indices in `tokens` of those whose unrotated keys are stored too.
        copies: [saved], copy slots to write these to. As for page slots, but counted over the
            `copies_per_page` of each page.
        moves: to run first, if any.
        sinks: to rotate anew after `moves`, if any.
    """

    tokens: Integers
    sequences: Integers
    starts: Integers
    lengths: Integers
    positions: Integers
    slots: Integers
    saved: Integers
    copies: Integers
    moves: Moves | None
    sinks: SinkMoves | None


def copies_per_page(schedule: Schedule, page_size: int) -> int:
    """Return how many unrotated keys a page must have room for.

    With original positions the pages of a sequence share the copies of its sinks. With slots as
    positions each slot has one.
    """
    if schedule.positions == "slots":
        return page_size
    return -(-schedule.sinks // -(-schedule.capacity // page_size))


def split_step(
    schedule: ScheduleArrays,
    original: OriginalPositions | None,
    num_seen: Integers,
    starts: Integers,
    pages: Integers,
    page_size: int,
) -> Iterator[SubChunk]:
    """Split a step into sub-chunks, in the order in which they run.

    Args:
        schedule: of every sequence.
        original: where keys stand; None where they stand at their slots.
        num_seen: [sequences], tokens of each sequence before this step.
        starts: [sequences + 1], where the tokens of each start among the step's tokens.
        pages: [sequences, pages], the pages of each sequence, in order of slots.
        page_size: slots in a page. Page slot `p * page_size + i` is slot i of page p.
    """
    counts = np.diff(starts)
    sequence = np.repeat(np.arange(len(counts)), counts)
    if not len(sequence):
        return
    seen = num_seen[sequence] + np.arange(len(sequence)) - starts[:-1][sequence]
    slots, done, compaction = schedule.locate(seen)
    positions = slots if original is None else seen - original.bases(done)
    # The first tokens of a sequence are in sub-chunk 0, with or without a compaction before them.
    sub_chunk = done - done[starts[:-1][sequence]]
    order = np.argsort(sub_chunk, kind="stable")
    sizes = np.bincount(sub_chunk)
    num_copies = copies_per_page(schedule.schedule, page_size)
    for tokens in np.split(order, np.cumsum(sizes)[:-1]):
        firsts = np.flatnonzero(np.diff(sequence[tokens], prepend=-1))
        ends = np.append(firsts[1:], len(tokens))
        sequences = sequence[tokens[firsts]]
        page_slots = _page_slots(pages, sequence[tokens], slots[tokens], page_size)
        saved, copies = np.arange(len(tokens)), page_slots
        if original is not None:
            saved = np.flatnonzero(seen[tokens] < schedule.schedule.sinks)
            sinks = tokens[saved]
            copies = _page_slots(pages, sequence[sinks], seen[sinks], num_copies)
        running = compaction[tokens[firsts]]
        is_running = running > 0
        moves, moved_sinks = None, None
        if is_running.any():
            moves, moved_sinks = _moves(
                schedule, original, running[is_running], pages[sequences[is_running]], page_size
            )
        yield SubChunk(
            tokens=tokens,
            sequences=sequences,
            starts=np.append(firsts, len(tokens)),
            lengths=slots[tokens[ends - 1]] + 1,
            positions=positions[tokens],
            slots=page_slots,
            saved=saved,
            copies=copies,
            moves=moves,
            sinks=moved_sinks,
        )


def _moves(
    schedule: ScheduleArrays,
    original: OriginalPositions | None,
    compactions: Integers,
    pages: Integers,
    page_size: int,
) -> tuple[Moves, SinkMoves | None]:
    """Join the moves of one compaction for each of the sequences with these `pages`."""
    num_sinks = schedule.schedule.sinks
    sources, targets, positions, lower, sink_positions = [], [], [], [], []
    renumbers = False
    for row, compaction in enumerate(compactions.tolist()):
        first, kept = schedule.moves(compaction)
        distances = None
        if original is not None:
            of_sinks, distances = original.after(compaction)
            sink_positions.append(of_sinks)
        if distances is not None:
            first, renumbers = num_sinks, True
        slots = np.arange(first, kept.shape[1])
        sources.append(_page_slots(pages, row, kept[:, first:], page_size))
        targets.append(_page_slots(pages, row, slots, page_size))
        positions.append(np.tile(slots, (len(kept), 1)))
        lower.append(np.zeros_like(positions[-1]) if distances is None else distances[:, first:])
    moves = Moves(
        np.concatenate(sources, axis=1),
        np.concatenate(targets),
        np.concatenate(positions, axis=1) if original is None else None,
        np.concatenate(lower, axis=1) if renumbers else None,
    )
    if original is None or not num_sinks:
        return moves, None
    owners = np.repeat(np.arange(len(pages)), num_sinks)
    sinks = np.tile(np.arange(num_sinks), len(pages))
    return moves, SinkMoves(
        _page_slots(pages, owners, sinks, copies_per_page(schedule.schedule, page_size)),
        _page_slots(pages, owners, sinks, page_size),
        np.concatenate(sink_positions, axis=1),
    )


def _page_slots(
    pages: Integers, owners: Integers | int, slots: Integers, page_size: int
) -> Integers:
    """Return the page slots of `slots` of the sequences `owners`."""
    found: Integers = pages[owners, slots // page_size] * page_size + slots % page_size
    return found
