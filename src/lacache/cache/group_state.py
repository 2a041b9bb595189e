"""Counts and positions of one sequence in one head group, and the plans of its compactions."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import final

import numpy as np
import torch
from torch import Tensor

from lacache.cache.chunk_history import find_history
from lacache.cache.chunk_tokens import ChunkTokens, move_sinks
from lacache.cache.slot_order import Integers, SlotOrder
from lacache.policies.schedule import Schedule, State

_MAX_TABLES = 128


@final
class CompactionTables:
    """Tables of the slots that survive each compaction of a schedule, for every pattern.

    Once the schedule is steady, slots and cursor alone determine a table, so a few tables repeat.
    They are computed once and shared by all sequences.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.patterns = sorted(set(schedule.patterns))
        """Pattern numbers of the schedule, in the order of the tables' first dimension."""
        self._table = lru_cache(maxsize=_MAX_TABLES)(self._make)

    def surviving(self, state: State) -> Tensor:
        """Return the slots [patterns, N], increasing, that survive when a full cache compacts."""
        steady = state.num_seen >= self.schedule.steady_from
        return self._table(state._replace(num_seen=self.schedule.steady_from) if steady else state)

    def _make(self, state: State) -> Tensor:
        keep = torch.ones(len(self.patterns), state.num_cached, dtype=torch.bool)
        for index, pattern in enumerate(self.patterns):
            for start, stop in self.schedule.evicted_slots(state, pattern):
                keep[index, start:stop] = False
        return keep.nonzero()[:, 1].contiguous().view(len(self.patterns), -1)


@final
@dataclass(frozen=True)
class GatherPlan:
    """A plan of what a compaction, or a change of positions, does to a head group's layers.

    The first slots have a copy of their keys as the model gave them ("unrotated"), from which they
    are rotated: all slots where keys stand at their slots, else the sinks alone.
    """

    num_cached: int
    """Slots in use before."""
    num_saved: int
    """Slots before this one have a copy among the unrotated keys; later slots do not yet."""
    num_left: int
    """Slots in use after, N."""
    surviving: Tensor | None
    """The slots that survive, in their order, for each pattern [patterns, N]; None without a
    compaction, or with `moves`."""
    moves: Tensor | None
    """The tokens that take the places of others: pattern, slot and former slot of each, by pattern
    [3, M]; None without a compaction, or with `surviving`."""
    shifts: Tensor
    """Distance of each unrotated key from its original position [patterns, N]."""
    is_moved: Tensor
    """Whether the unrotated key's token stands elsewhere than before, bool [patterns, N]."""
    in_place: Tensor | None = None
    """Distance by which each key without an unrotated copy is rotated in place [patterns, N].

    None unless the compaction renumbers. The key is rounded once more.
    """

    @cached_property
    def sources(self) -> Tensor | None:
        """Former slot of the token in each slot [patterns, N]; None if no compaction runs.

        No token moves to a later slot.
        """
        if self.moves is None:
            return self.surviving
        pattern, slot, former = self.moves
        sources = torch.arange(self.num_left).repeat(len(self.shifts), 1)
        sources[pattern, slot] = former
        return sources

    @cached_property
    def first_changed(self) -> tuple[int, ...]:
        """First slot of each pattern in which a compaction puts another token."""
        if self.sources is None:
            return (self.num_cached,) * len(self.shifts)
        return _first(self.sources != torch.arange(self.sources.shape[1]))

    @cached_property
    def to_rotate(self) -> tuple[tuple[int, int], ...]:
        """Slots `(start, stop)` of each pattern whose keys must be rotated by their shifts.

        Keys before `start` keep slots and positions; keys from `stop` on keep positions only, but
        for `in_place`.
        """
        size = self.shifts.shape[1]
        ends = zip(_first(self.is_moved), _first(self.is_moved.flip(1)), strict=True)
        ranges = []
        for changed, (first, last) in zip(self.first_changed, ends, strict=True):
            start = min(changed, first)
            ranges.append((start, max(start, size - last)))
        return tuple(ranges)


@final
class GroupState:
    """Counts and positions of one sequence in the KV heads that share one schedule.

    The newest key stands at position `origin + num_cached - 1`. Where the schedule says "slots",
    the key in each slot s stands at `origin + s`; models use slots (0 .. capacity - 1) as
    positions, or transformers' growing count, where `origin` is `num_evicted`. Where it says
    "original", keys stay where they are, and the sinks stand right before the oldest of them. Only
    differences matter, so all can be mixed. Between two gather plans nothing but counts changes.

    Args:
        tables: of the schedule.
        moves_few: a compaction fills the slots that it frees with the last slots' tokens, so that
            all others stay where they are (docs/adr/0031). Else slots stay in the tokens' order,
            which keys that stand at their slots need.
    """

    def __init__(self, tables: CompactionTables, *, moves_few: bool = False) -> None:
        self._compaction_tables = tables
        self.schedule = tables.schedule
        self.state = self.schedule.start()
        self.origin = 0
        self.num_compactions = 0
        # For the saved slots of each pattern; keys in later slots stand at their original
        # positions. Replaced, never modified, so that copies can share it. A plan is made of a few
        # small arrays, with which numpy is several times as fast as torch.
        self._given: Integers = np.empty((len(tables.patterns), 0), dtype=np.int64)
        self._order = SlotOrder(self._given) if moves_few else None

    def settled(self) -> State:
        """Return the counts that the next token finds: after a compaction that is due."""
        return self.schedule.settle(self.state)

    def room(self) -> int:
        """Return how many tokens fit before a compaction other than the one that is due."""
        return self.schedule.room(self.settled())

    @property
    def num_saved(self) -> int:
        """Slots whose original positions are stored; keys in later slots have not moved."""
        return int(self._given.shape[1])

    def original_positions(self) -> Tensor:
        """Return the positions [patterns, N] at which the model gave the keys in the slots.

        A key that was renumbered counts as given where it stands since.
        """
        return torch.from_numpy(self._all_given())

    def shifts(self) -> Tensor:
        """Return how far unrotated keys [patterns, N] stand from their original positions."""
        standing = self._standing(self._given)
        return torch.from_numpy(standing - self._given[:, : standing.shape[1]])

    def begin(self, first_position: int, *, renumber: bool = False) -> GatherPlan | None:
        """Prepare for tokens from `first_position` on; run a compaction that is due.

        Args:
            first_position: position of the next token.
            renumber: move keys at original positions to their slots, counted from `origin`.

        Returns:
            What the layers must do now; None for nothing.
        """
        before = self.state
        after = self.settled()
        origin = first_position - after.num_cached
        renumber = renumber and self.schedule.positions == "original"
        if after is before and origin == self.origin and not renumber:
            return None
        given, num_saved = self._all_given(), self.num_saved
        former = self._standing(given)
        surviving = moves = None
        if after is not before:
            kept = self._compaction_tables.surviving(before).numpy()
            if self._order is None:
                surviving, patterns = torch.from_numpy(kept), np.arange(len(given))[:, None]
                given = given[patterns, kept]
                former = former[patterns, kept[:, : former.shape[1]]]
            else:
                self._order, moves = self._order.compact(kept, before.num_cached)
                pattern, slot, source = moves
                given[pattern, slot] = given[pattern, source]
                given = given[:, : after.num_cached]
            self.num_compactions += 1
        self.state, self.origin = after, origin
        in_place = None
        if renumber:
            ranks = np.arange(after.num_cached)
            if self._order is not None:
                ranks = self._order.ranks(after.num_cached)
            in_place = origin + ranks - given
            in_place[:, : self.schedule.sinks] = 0
            given = given + in_place
        self._given = given
        standing = self._standing(given)
        return GatherPlan(
            before.num_cached,
            num_saved,
            after.num_cached,
            surviving,
            None if moves is None else torch.from_numpy(moves),
            torch.from_numpy(standing - given[:, : standing.shape[1]]),
            torch.from_numpy(former != standing),
            None if in_place is None else torch.from_numpy(in_place),
        )

    def restore(
        self, state: State, origin: int, num_compactions: int, original_positions: Tensor
    ) -> GatherPlan:
        """Take over the counts and positions of another sequence.

        Args:
            state: its counts.
            origin: its origin.
            num_compactions: its number of compactions.
            original_positions: of its keys [patterns, N], of which the first are all unrotated.

        Returns:
            What the layers must do now.
        """
        self.state, self.origin, self.num_compactions = state, origin, num_compactions
        self._given = original_positions.numpy()
        if self._order is not None:
            self._order = SlotOrder(self._given.argsort(axis=1))
        shifts, num_cached = self.shifts(), state.num_cached
        is_moved = torch.ones_like(shifts, dtype=torch.bool)
        return GatherPlan(num_cached, num_cached, num_cached, None, None, shifts, is_moved)

    def commit(self, num_new: int) -> None:
        """Count new tokens that no compaction separates."""
        self.state = self.state.insert(num_new)

    def pass_chunk(self, num_new: int) -> ChunkTokens:
        """Count the tokens of a chunk, and run the compactions within it.

        Keys are at original positions, no compaction is due, and no key is renumbered meanwhile.

        Args:
            num_new: tokens of the chunk, Q.

        Returns:
            What its queries see, and what the layers must store.
        """
        assert self._order is not None
        num_before = self.state.num_cached
        next_position = self.origin + num_before
        history = find_history(self.schedule, self._compaction_tables.patterns, self.state, num_new)
        new = np.broadcast_to(next_position + np.arange(num_new), (len(history.left), num_new))
        given = np.concatenate([self._all_given(), new], axis=1)
        slots = self._order.all_slots(num_before + num_new)
        num_saved = self.num_saved
        moved = move_sinks(history, given, slots, self.schedule.sinks)
        moves = np.empty((3, 0), dtype=np.int64)
        if history.compactions:
            self._order, moves = self._order.compact(history.left, num_before + num_new)
            pattern, slot, former = moves
            given[pattern, slot] = given[pattern, former]
            self._given = given[:, : history.state.num_cached]
            self.num_compactions += len(history.compactions)
        self.state = history.state
        self.origin = next_position + num_new - history.state.num_cached
        return ChunkTokens(
            num_before,
            num_new,
            num_saved,
            history.state.num_cached,
            slots,
            history.ends,
            moved,
            moves,
        )

    def _all_given(self) -> Integers:
        """Return the original positions of the keys in all slots [patterns, N]."""
        patterns, known = self._given.shape
        newer = self.origin + np.arange(known, self.state.num_cached)
        later = np.broadcast_to(newer, (patterns, len(newer)))
        return np.concatenate([self._given, later], axis=1)

    def _standing(self, given: Integers) -> Integers:
        """Return where keys stand that the model gave at some positions [patterns, N].

        Returns:
            [patterns, M]: of the first keys, those that move.
        """
        sinks, (patterns, num_keys) = self.schedule.sinks, given.shape
        num_moving = min(self.schedule.num_moving, num_keys)
        # Where only sinks are left, the next token is the oldest other one.
        if self.schedule.positions == "slots" or num_keys <= sinks:
            return np.broadcast_to(self.origin + np.arange(num_moving), (patterns, num_moving))
        slots = sinks if self._order is None else self._order.slots_at(sinks)
        oldest: Integers = given[np.arange(patterns), slots]
        return oldest[:, None] + np.arange(-sinks, 0)


def _first(marks: Tensor) -> tuple[int, ...]:
    """Return the index of the first of each row of [M, N] that is true; N where none is."""
    last = torch.ones(len(marks), 1, dtype=torch.bool)
    # argmax returns the first of equal numbers.
    return tuple(torch.cat([marks, last], dim=1).to(torch.uint8).argmax(dim=1).tolist())
