"""Counts and positions of one sequence, and the plans of its compactions."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import torch
from torch import Tensor

from lacache.errors import UnsupportedOperationError
from lacache.policies.query_positions import QueryPositions
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
    surviving: Tensor | None
    """Slots that survive, for each pattern [patterns, N]; None without a compaction."""
    first_changed: tuple[int, ...]
    """For each pattern, the first slot whose token another takes the place of."""
    shifts: Tensor
    """Distance of each unrotated key from its original position [patterns, N]."""
    to_rotate: tuple[tuple[int, int], ...]
    """For each pattern, the slots `(start, stop)` whose keys must be rotated by their shifts.

    Keys before `start` keep slots and positions; keys from `stop` on keep positions only, but
    for `in_place`.
    """
    in_place: Tensor | None = None
    """Distance by which each key without an unrotated copy is rotated in place [patterns, N].

    None unless the compaction renumbers. The key is rounded once more.
    """


@final
class GroupState:
    """Counts and positions of one sequence in the KV heads that share one schedule.

    The newest key stands at position `origin + num_cached - 1`. Where the schedule says "slots",
    the key in each slot s stands at `origin + s`; models use slots (0 .. capacity - 1) as
    positions, or transformers' growing count, where `origin` is `num_evicted`. Where it says
    "original", keys stay where they are, and the sinks stand right before the oldest of them. Only
    differences matter, so all can be mixed. Between two gather plans nothing but counts changes.
    """

    def __init__(self, tables: CompactionTables) -> None:
        self._compaction_tables = tables
        self.schedule = tables.schedule
        self.state = self.schedule.start()
        self.origin = 0
        self.num_compactions = 0
        # For the saved slots of each pattern; keys in later slots stand at their original
        # positions. Replaced, never modified, so that copies can share it.
        self._original_positions = torch.empty(len(tables.patterns), 0, dtype=torch.long)

    def settled(self) -> State:
        """Return the counts that the next token finds: after a compaction that is due."""
        return self.schedule.settle(self.state)

    def room(self) -> int:
        """Return how many tokens fit before a compaction other than the one that is due."""
        return self.schedule.room(self.settled())

    @property
    def num_saved(self) -> int:
        """Slots whose original positions are stored; keys in later slots have not moved."""
        return self._original_positions.shape[1]

    def original_positions(self) -> Tensor:
        """Return the positions [patterns, N] at which the model gave the keys in the slots.

        A key that was renumbered counts as given where it stands since.
        """
        patterns, known = self._original_positions.shape
        newer = self.origin + torch.arange(known, self.state.num_cached)
        return torch.cat([self._original_positions, newer.expand(patterns, -1)], dim=1)

    def shifts(self) -> Tensor:
        """Return how far unrotated keys [patterns, N] stand from their original positions."""
        given = self._original_positions
        return (self._positions(given) - given)[:, : self._num_unrotated]

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
        original_positions = self.original_positions()
        former_positions = self._positions(original_positions)
        num_saved = self.num_saved
        surviving = None
        if after is not before:
            surviving = self._compaction_tables.surviving(before)
            original_positions = original_positions.gather(1, surviving)
            former_positions = former_positions.gather(1, surviving)
            self.num_compactions += 1
        self.state, self.origin = after, origin
        in_place = None
        if renumber:
            in_place = origin + torch.arange(after.num_cached) - original_positions
            in_place[:, : self.schedule.sinks] = 0
            original_positions = original_positions + in_place
        self._original_positions = original_positions
        first_changed, to_rotate = self._changes(surviving, former_positions)
        return GatherPlan(
            before.num_cached,
            num_saved,
            surviving,
            first_changed,
            self.shifts(),
            to_rotate,
            in_place,
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
        self._original_positions = original_positions
        num_cached, patterns = state.num_cached, len(original_positions)
        first_changed = (num_cached,) * patterns
        to_rotate = ((0, self._num_unrotated),) * patterns
        return GatherPlan(num_cached, num_cached, None, first_changed, self.shifts(), to_rotate)

    def commit(self, num_new: int) -> None:
        """Count new tokens that no compaction separates."""
        self.state = self.state.insert(num_new)

    @property
    def _num_unrotated(self) -> int:
        """Saved slots that may move."""
        return min(self.schedule.num_moving, self.num_saved)

    def _positions(self, original_positions: Tensor) -> Tensor:
        """Return where keys [patterns, N] stand that the model gave at these positions."""
        sinks, num_keys = self.schedule.sinks, original_positions.shape[1]
        # Where only sinks are left, the next token is the oldest other one.
        if self.schedule.positions == "slots" or num_keys <= sinks:
            return (self.origin + torch.arange(num_keys)).expand_as(original_positions)
        moved = original_positions[:, sinks : sinks + 1] + torch.arange(-sinks, 0)
        return torch.cat([moved, original_positions[:, sinks:]], dim=1)

    def _changes(
        self, surviving: Tensor | None, former_positions: Tensor
    ) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        """Return `first_changed` and `to_rotate`, given former positions [patterns, N]."""
        num_keys, patterns = self.num_saved, len(self._original_positions)
        first_changed = (num_keys,) * patterns
        if surviving is not None:
            first_changed = tuple(map(_first, surviving != torch.arange(num_keys)))
        moved = former_positions != self._positions(self._original_positions)
        to_rotate = []
        for changed, moved_slots in zip(
            first_changed, moved[:, : self._num_unrotated], strict=True
        ):
            start = min(changed, _first(moved_slots))
            stop = len(moved_slots) - _first(moved_slots.flip(0))
            to_rotate.append((start, max(start, stop)))
        return first_changed, tuple(to_rotate)


@final
class SequenceState:
    """Counts and positions of one sequence in every head group; the buffers hold its tokens."""

    def __init__(self, tables: Sequence[CompactionTables], positions: QueryPositions) -> None:
        self.groups = [GroupState(each) for each in tables]
        self.is_changing = False
        """Whether slots or counts are changing now; if no call is running, one was interrupted."""
        self.base = 0
        """Tokens seen at position 0, where positions count on; see QueryPositions."""
        self._positions = positions

    @property
    def num_seen(self) -> int:
        """Tokens that the model has seen."""
        return self.groups[0].state.num_seen

    def room(self) -> int:
        """Return how many tokens the next forward can bring without a compaction inside it."""
        return min(group.room() for group in self.groups)

    def num_slots(self) -> tuple[int, ...]:
        """Return the slots that each head group will have in use when the next compaction runs."""
        room = min(group.schedule.room(group.state) for group in self.groups)
        return tuple(group.state.num_cached + room for group in self.groups)

    def next_position(self) -> int:
        """Return the position id of the next token."""
        position, _ = self._positions.find(self.base, self._states())
        return position

    def begin(self) -> list[GatherPlan | None]:
        """Return, for each head group, what its layers must do before the next token.

        The caller sets `is_changing` to False once they have done it.

        Raises:
            UnsupportedOperationError: an earlier change was interrupted.
        """
        self.validate_complete()
        position, base = self._positions.find(self.base, self._states())
        self.is_changing = True
        plans = [group.begin(position, renumber=base != self.base) for group in self.groups]
        self.base = base
        return plans

    def validate_complete(self) -> None:
        """Raise UnsupportedOperationError if an earlier change was interrupted."""
        if self.is_changing:
            raise UnsupportedOperationError(
                "the last change of this sequence was interrupted half-way, so its layers hold "
                "different tokens; close it, and prefill it or restore a snapshot again"
            )

    def copy(self) -> "SequenceState":
        """Return an independent copy."""
        state = copy(self)
        state.groups = [copy(group) for group in self.groups]
        return state

    def commit(self, num_new: int) -> None:
        """Count new tokens in every head group."""
        for group in self.groups:
            group.commit(num_new)

    def follow(self, planned: "SequenceState") -> None:
        """Take over the counts and positions of a copy for which tokens were planned."""
        self.groups, self.base = planned.groups, planned.base

    def _states(self) -> list[State]:
        return [group.state for group in self.groups]


def _first(marks: Tensor) -> int:
    """Return the first index of [N] that is true; N where none is."""
    found = marks.nonzero()
    return int(found[0]) if len(found) else len(marks)
