"""The plan of a chunk: all its compactions, in integers, before its forward (docs/adr/0028)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lacache.cache.sequence_state import SequenceState
from lacache.cache.static.kv_heads import SharedPlan

MAX_SUB_CHUNKS = 32
"""Most sub-chunks of a chunk: a plan has integers for each slot and sub-chunk."""


@final
@dataclass(frozen=True)
class SlotsInUse:
    """Slots in use in the KV heads of each head group while a chunk is processed."""

    before: tuple[int, ...]
    """Before the first token, after a compaction that is due."""
    most: tuple[int, ...]
    """At most, at the end of any sub-chunk; of the chunk alone where tokens are stored at once."""
    after: tuple[int, ...]
    """After the last token."""
    num_slots: tuple[int, ...]
    """Slots that are reserved up to the first compaction within the chunk."""
    resizes: bool
    """Whether a later sub-chunk needs other numbers of slots."""


@final
@dataclass(frozen=True)
class SubChunk:
    """The tokens of a chunk between two compactions."""

    start: int
    """Index of its first token in the chunk."""
    stop: int
    """Index after its last token."""
    num_cached: tuple[int, ...]
    """Slots in use in each head group before its tokens."""
    plans: tuple[SharedPlan | None, ...]
    """For each head group, what its layers do before the tokens; None for nothing."""


@final
@dataclass(frozen=True)
class ChunkPlan:
    """The sub-chunks of one chunk, which all layers follow in its forward."""

    sub_chunks: tuple[SubChunk, ...]
    positions: Tensor
    """Position ids [1, Q]."""
    after: SequenceState
    """Counts and positions once the forward is done."""

    @property
    def compacts(self) -> bool:
        """Whether a compaction runs within the chunk."""
        return len(self.sub_chunks) > 1


def sub_chunk_ends(
    sequence: SequenceState, num_tokens: int, *, at_once: bool
) -> Iterator[tuple[int, SlotsInUse]]:
    """Yield the tokens up to the end of each sub-chunk, and the slots in use until then.

    Args:
        sequence: before the chunk; it does not change.
        num_tokens: of the chunk, at least 1.
        at_once: layers store what is left after the chunk alone, so that its own tokens are in no
            slot before. The chunk ends where keys are renumbered then.
    """
    schedules = [group.schedule for group in sequence.groups]
    states = [group.state for group in sequence.groups]
    end, use, base = 0, None, sequence.base
    while end < num_tokens:
        new_base = sequence.next_base(base, states) if at_once else base
        if use is not None and new_base != base:
            break
        base = new_base
        states = [s.settle(state) for s, state in zip(schedules, states, strict=True)]
        before = tuple(state.num_cached for state in states)
        room = min(s.room(state) for s, state in zip(schedules, states, strict=True))
        length = min(room, num_tokens - end)
        num_slots = tuple(n + room for n in before)
        after = tuple(n + length for n in before)
        if use is None:
            use = SlotsInUse(before, after, after, num_slots, resizes=False)
        else:
            most = tuple(map(max, use.before if at_once else use.most, after))
            resizes = use.resizes or num_slots != use.num_slots
            use = SlotsInUse(use.before, most, after, use.num_slots, resizes)
        states = [state.insert(length) for state in states]
        end += length
        yield end, use


def plan_chunk(sequence: SequenceState, num_new: int, device: torch.device) -> ChunkPlan:
    """Plan the forward of a chunk.

    Args:
        sequence: before the chunk, after a compaction that was due; it does not change.
        num_new: tokens of the chunk, Q.
        device: where the KV heads are.
    """
    planned = sequence.copy()
    sub_chunks: list[SubChunk] = []
    positions: list[Tensor] = []
    start = 0
    while start < num_new:
        plans = planned.begin()
        planned.is_changing = False
        stop = min(num_new, start + planned.room())
        first = planned.next_position()
        positions.append(torch.arange(first, first + stop - start))
        sub_chunks.append(
            SubChunk(
                start,
                stop,
                tuple(group.state.num_cached for group in planned.groups),
                tuple(
                    # Tables of all slots would take more memory than the cache; those of sinks
                    # are few, but slower to compute.
                    plan and SharedPlan(plan, device, keeps_tables=s.positions == "original")
                    for plan, s in zip(plans, (g.schedule for g in planned.groups), strict=True)
                ),
            )
        )
        planned.commit(stop - start)
        start = stop
    return ChunkPlan(tuple(sub_chunks), torch.cat(positions).to(device)[None], planned)
