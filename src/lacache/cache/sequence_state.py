"""Counts and positions of one sequence in every head group."""

from collections.abc import Sequence
from copy import copy
from typing import final

from lacache.cache.group_state import CompactionTables, GatherPlan, GroupState
from lacache.errors import UnsupportedOperationError
from lacache.policies.query_positions import QueryPositions
from lacache.policies.schedule import State


@final
class SequenceState:
    """Counts and positions of one sequence in every head group; the buffers hold its tokens."""

    def __init__(self, tables: Sequence[CompactionTables], positions: QueryPositions) -> None:
        self.groups = [
            GroupState(each, moves_few=each.schedule.positions == "original") for each in tables
        ]
        self.is_changing = False
        """Whether slots or counts are changing now; if no call is running, one was interrupted."""
        self.base = 0
        """Tokens seen at position 0, where positions count on; see QueryPositions."""
        self._positions = positions
        self._num_calm = 0
        """Tokens that can come before any head group has a plan again; 0 if that is unknown."""

    @property
    def num_seen(self) -> int:
        """Tokens that the model has seen."""
        return self.groups[0].state.num_seen

    @property
    def is_calm(self) -> bool:
        """Whether nothing but counts has changed since `begin`, and the next token finds it so.

        Neither slots nor regions move then, and each position is one more than the last.
        """
        return self._num_calm > 0 and not self.is_changing

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

    def next_base(self, base: int, states: Sequence[State]) -> int:
        """Return the base of the next token's position, from the last base and later states."""
        _, new_base = self._positions.find(base, states)
        return new_base

    def begin(self) -> list[GatherPlan | None]:
        """Return, for each head group, what its layers must do before the next token.

        The caller sets `is_changing` to False once they have done it.

        Raises:
            UnsupportedOperationError: an earlier change was interrupted.
        """
        self.validate_complete()
        if self.is_calm:
            return [None] * len(self.groups)
        position, base = self._positions.find(self.base, self._states())
        self.is_changing = True
        plans = [group.begin(position, renumber=base != self.base) for group in self.groups]
        self.base = base
        self._num_calm = self.room()
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
        state._num_calm = 0
        return state

    def commit(self, num_new: int) -> None:
        """Count new tokens in every head group."""
        for group in self.groups:
            group.commit(num_new)
        self._num_calm = max(0, self._num_calm - num_new)

    def follow(self, planned: "SequenceState") -> None:
        """Take over the counts and positions of a copy for which tokens were planned."""
        self.groups, self.base = planned.groups, planned.base
        self._num_calm = 0

    def _states(self) -> list[State]:
        return [group.state for group in self.groups]
