"""Compactions within a chunk, in integers: when each token is evicted, and which are left."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from lacache.cache.slot_order import Integers
from lacache.policies.schedule import Schedule, State


@final
@dataclass(frozen=True)
class ChunkHistory:
    """The compactions of one head group within a chunk of Q tokens.

    Tokens are numbered by age: 0 to C - 1 are cached before the chunk, C to C + Q - 1 are its own.
    """

    ends: Integers
    """Tokens of the chunk that come before each token is evicted [patterns, C + Q]; Q if never."""
    left: Integers
    """The tokens that are left after the chunk [patterns, N], oldest first."""
    compactions: tuple[tuple[int, Integers], ...]
    """For each, the tokens of the chunk before it, and the oldest token after it that is not a sink
    [patterns]."""
    state: State
    """After the chunk."""


def find_history(
    schedule: Schedule, patterns: Sequence[int], state: State, num_new: int
) -> ChunkHistory:
    """Insert the tokens of a chunk one by one, and compact whenever the cache is full.

    Args:
        schedule: of the head group.
        patterns: its pattern numbers.
        state: before the chunk; no compaction is due.
        num_new: tokens of the chunk, Q.
    """
    num_before = state.num_cached
    ages = [list(range(num_before)) for _ in patterns]
    ends = np.full((len(patterns), num_before + num_new), num_new)
    compactions = []
    done = 0
    while True:
        next_token = num_before + done
        length = min(schedule.room(state), num_new - done)
        for mine in ages:
            mine.extend(range(next_token, next_token + length))
        state, done, next_token = state.insert(length), done + length, next_token + length
        if done == num_new:
            break
        for pattern, mine, end in zip(patterns, ages, ends, strict=True):
            for start, stop in reversed(schedule.evicted_slots(state, pattern)):
                end[mine[start:stop]] = done
                del mine[start:stop]
        state = schedule.compact(state)
        # Where only sinks are left, the next token is the oldest other one.
        sinks = schedule.sinks
        oldest = [mine[sinks] if len(mine) > sinks else next_token for mine in ages]
        compactions.append((done, np.array(oldest)))
    return ChunkHistory(ends, np.array(ages), tuple(compactions), state)
