"""Counts of one sequence in a static cache."""

from collections.abc import Sequence
from copy import copy
from typing import final

from lacache.cache.group_state import CompactionTables, GatherPlan, GroupState
from lacache.errors import UnsupportedOperationError


@final
class SequenceState:
    """Counts and positions of one sequence in every head group; the buffers hold its tokens."""

    def __init__(self, tables: Sequence[CompactionTables], *, count_on: bool) -> None:
        self.groups = [GroupState(each) for each in tables]
        self.is_changing = False
        """Whether slots or counts are changing now; if no call is running, one was interrupted."""
        # Native sliding layers keep rotated keys, so positions must be original positions.
        self._count_on = count_on

    @property
    def num_seen(self) -> int:
        """Tokens that the model has seen."""
        return self.groups[0].state.num_seen

    def room(self) -> int:
        """Return how many tokens the next forward can bring without a compaction inside it."""
        return min(group.room() for group in self.groups)

    def next_position(self) -> int:
        """Return the position id of the next token: its slot, where the model allows.

        With several groups it is the slot in the largest, where positions change least often.
        """
        largest = max(self.groups, key=lambda group: group.schedule.capacity).settled()
        return largest.num_seen if self._count_on else largest.num_cached

    def begin(self) -> list[GatherPlan | None]:
        """Return, for each head group, what its layers must do before the next token.

        The caller sets `is_changing` to False once they have done it.

        Raises:
            UnsupportedOperationError: an earlier change was interrupted.
        """
        self.validate_complete()
        position = self.next_position()
        self.is_changing = True
        return [group.begin(position) for group in self.groups]

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
