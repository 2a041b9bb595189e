"""Split a step of vLLM into sub-chunks, in plain numpy.

A step brings each sequence a chunk of tokens. Tokens before and after a compaction see different
caches, so chunks are split there. Sub-chunk i of a step holds sub-chunk i of every sequence: the
sequences whose sub-chunk starts with a compaction run it, then all write and attend. Most steps
have one sub-chunk. Policies compact head groups at the same tokens, which saves sub-chunks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from lacache.integrations.vllm.schedule_arrays import Integers
from lacache.integrations.vllm.worker_heads import HeadGroup, WorkerHeads


@final
@dataclass(frozen=True)
class Moves:
    """Slots of a layer that compactions move, over its heads and all sequences that run one.

    Args:
        sources: page slots [moved].
        targets: page slots [moved].
        lower: by how much lower each key stands than before [moved]; None for 0.
        copies: where keys stand at their slots, the copies of unrotated keys, which move too, and
            the positions that they are rotated to: sources, targets and positions [3, moved].
    """

    sources: Integers
    targets: Integers
    lower: Integers | None
    copies: Integers | None


@final
@dataclass(frozen=True)
class SinkMoves:
    """Sinks of a layer that are rotated anew after compactions.

    Args:
        copies: of their unrotated keys [sinks].
        slots: page slots [sinks].
        positions: that they are rotated to [sinks].
    """

    copies: Integers
    slots: Integers
    positions: Integers


@final
@dataclass(frozen=True)
class SubChunk:
    """Tokens of several sequences that are written and attended to together.

    Page slot `p * page_size + i` is slot i of page p; copy `2 * p * page_size + i` is copy i.

    Args:
        tokens: [tokens], indices among the step's tokens; increasing within each sequence.
        sequences: [sequences], indices among the step's sequences.
        starts: [sequences + 1], where the tokens of each sequence start in `tokens`.
        lengths: [heads, sequences], slots in use after the tokens are written.
        positions: [heads, tokens], that queries and keys are rotated to.
        slots: [heads, tokens], page slots to write to.
        saved: [saved], indices in `tokens` of those whose unrotated keys are stored too.
        copies: [heads, saved], where these are stored.
        moves: by layer, to run first, if any.
        sinks: by layer, to rotate anew after `moves`, if any.
    """

    tokens: Integers
    sequences: Integers
    starts: Integers
    lengths: Integers
    positions: Integers
    slots: Integers
    saved: Integers
    copies: Integers
    moves: Sequence[Moves | None]
    sinks: Sequence[SinkMoves | None]


def split_step(
    heads: WorkerHeads, num_seen: Integers, starts: Integers, pages: Integers
) -> Iterator[SubChunk]:
    """Split a step into sub-chunks, in the order in which they run.

    Args:
        heads: of the worker.
        num_seen: [sequences], tokens of each sequence before this step.
        starts: [sequences + 1], where the tokens of each start among the step's tokens.
        pages: [sequences, pages], the pages of each sequence.
    """
    counts = np.diff(starts)
    sequence = np.repeat(np.arange(len(counts)), counts)
    if not len(sequence):
        return
    seen = num_seen[sequence] + np.arange(len(sequence)) - starts[:-1][sequence]
    located = [group.arrays.locate(seen) for group in heads.groups]
    done = np.sum([done for _, done, _ in located], axis=0)
    # The first tokens of a sequence are in sub-chunk 0, with or without a compaction before them.
    begins = np.diff(done, prepend=done[0]) != 0
    begins[starts[:-1][counts > 0]] = False
    numbers = np.cumsum(begins)
    sub_chunk = numbers - numbers[starts[:-1][sequence]]
    order = np.argsort(sub_chunk, kind="stable")
    sizes = np.bincount(sub_chunk)
    renumbers = np.zeros_like(begins)
    if heads.original is not None:
        bases = heads.original.bases(seen)
        renumbers = bases != heads.original.bases(np.maximum(seen - 1, 0))
    places = _Places(heads, pages)
    for tokens in np.split(order, np.cumsum(sizes)[:-1]):
        owners = sequence[tokens]
        firsts = np.flatnonzero(np.diff(owners, prepend=-1))
        begun = tokens[firsts]
        ends = np.append(firsts[1:], len(tokens))
        slots = np.empty((heads.num_heads, len(tokens)), dtype=np.int64)
        page_slots = np.empty_like(slots)
        moving = _Moving(heads, places)
        for number, (of_group, done_by_group, compactions) in enumerate(located):
            group = heads.groups[number]
            if not len(group.heads):
                continue
            slots[group.heads] = of_group[tokens]
            page_slots[group.heads] = places.slots(group, owners, of_group[tokens])
            for token in begun[(compactions[begun] > 0) | renumbers[begun]].tolist():
                moving.add(
                    number,
                    int(sequence[token]),
                    _Event(
                        seen=int(seen[token]),
                        done=int(done_by_group[token]),
                        num_cached=int(of_group[token]),
                        compacts=bool(compactions[token]),
                    ),
                )
        saved, positions = np.arange(len(tokens)), slots
        if heads.original is not None:
            saved = np.flatnonzero(seen[tokens] < heads.most_sinks)
            positions = np.broadcast_to((seen - bases)[tokens], slots.shape)
        yield SubChunk(
            tokens=tokens,
            sequences=owners[firsts],
            starts=np.append(firsts, len(tokens)),
            lengths=slots[:, ends - 1] + 1,
            positions=positions,
            slots=page_slots,
            saved=saved,
            copies=places.copies(
                np.arange(heads.num_heads)[:, None], owners[saved], slots[:, saved]
            ),
            moves=moving.moves(),
            sinks=moving.sinks(),
        )


@final
class _Places:
    """Finds slots and copies of sequences in the pool's pages.

    Args:
        heads: of the worker.
        pages: of each sequence [sequences, pages].
    """

    def __init__(self, heads: WorkerHeads, pages: Integers) -> None:
        self._heads = heads
        self._pages = pages
        self._page_size = heads.page_size

    def slots(self, group: HeadGroup, owners: Integers | int, slots: Integers) -> Integers:
        """Return the page slots of `slots` [N] or [M, N] in each head of a group [M, N]."""
        rows, size = np.arange(len(group.heads))[:, None], self._page_size
        pages = self._pages[owners, group.table[rows, slots // size]]
        found: Integers = pages * size + slots % size
        return found

    def copies(self, heads: Integers, owners: Integers | int, numbers: Integers) -> Integers:
        """Return where the copies with these `numbers` of `heads` are."""
        copies, size = self._heads.first_copies[heads] + numbers, 2 * self._page_size
        pages = self._pages[owners, self._heads.first_copy_page + copies // size]
        found: Integers = pages * size + copies % size
        return found


@final
@dataclass(frozen=True)
class _Event:
    """A compaction or renumbering of a head group in a sequence, before a token.

    Args:
        seen: tokens before it.
        done: compactions of the group, with this one.
        num_cached: slots in use after it.
        compacts: whether a compaction runs; else keys are renumbered only.
    """

    seen: int
    done: int
    num_cached: int
    compacts: bool


@final
class _Moving:
    """Collects what compactions move at the start of a sub-chunk, by layer."""

    def __init__(self, heads: WorkerHeads, places: _Places) -> None:
        self._heads = heads
        self._places = places
        # By layer: the arrays of `Moves` and `SinkMoves` of each sequence and group.
        self._moves: dict[int, list[tuple[Integers, ...]]] = {}
        self._sinks: dict[int, list[tuple[Integers, ...]]] = {}

    def add(self, number: int, owner: int, event: _Event) -> None:
        """Run a compaction of group `number` in sequence `owner`, or renumber its keys."""
        group, places = self._heads.groups[number], self._places
        schedule = group.arrays.schedule
        first, kept = 0, np.arange(event.num_cached)[None].repeat(len(group.arrays.patterns), 0)
        if event.compacts:
            first, kept = group.arrays.moves(event.done)
        lower = None
        if self._heads.original is not None:
            positions, lower = self._heads.original.after(
                number, event.seen, event.done, event.num_cached
            )
            copies = places.copies(group.heads[:, None], owner, np.arange(schedule.sinks))
            sinks = np.tile(np.arange(schedule.sinks), (len(group.heads), 1))
            found = copies, places.slots(group, owner, sinks), positions[group.patterns]
            self._append(self._sinks, group, found)
        if lower is not None:
            first = schedule.sinks
        targets = np.tile(np.arange(first, kept.shape[1]), (len(group.heads), 1))
        sources = kept[group.patterns, first:]
        moved: tuple[Integers, ...] = (
            places.slots(group, owner, sources),
            places.slots(group, owner, targets),
        )
        if self._heads.original is None:
            heads = group.heads[:, None]
            moved += places.copies(heads, owner, sources), places.copies(heads, owner, targets)
            moved += (targets,)
        else:
            zeros = np.zeros_like(targets)
            moved += (zeros if lower is None else lower[group.patterns, first:],)
        self._append(self._moves, group, moved)

    def moves(self) -> list[Moves | None]:
        """Return the moves of each layer."""
        found: list[Moves | None] = [None] * len(self._heads.layers)
        for layer, parts in self._moves.items():
            sources, targets, *others = map(np.concatenate, zip(*parts, strict=True))
            lower = copies = None
            if self._heads.original is None:
                copies = np.stack(others)
            elif others[0].any():
                lower = others[0]
            found[layer] = Moves(sources, targets, lower, copies)
        return found

    def sinks(self) -> list[SinkMoves | None]:
        """Return the sinks of each layer that are rotated anew."""
        found: list[SinkMoves | None] = [None] * len(self._heads.layers)
        for layer, parts in self._sinks.items():
            found[layer] = SinkMoves(*map(np.concatenate, zip(*parts, strict=True)))
        return found

    def _append(
        self,
        lists: dict[int, list[tuple[Integers, ...]]],
        group: HeadGroup,
        arrays: tuple[Integers, ...],
    ) -> None:
        """Divide arrays [M, N] among the layers of a group."""
        if not arrays[0].size:
            return
        for layer, own in group.by_layer:
            parts = tuple(array[own].ravel() for array in arrays)
            lists.setdefault(layer, []).append(parts)
