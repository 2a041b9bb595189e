"""Where one sequence stands, in all groups."""

from collections.abc import Sequence
from copy import copy
from typing import final

from lacache.cache.static.compactions import Compactions
from lacache.cache.static.row_group import Move, RowGroup
from lacache.errors import UnsupportedOperationError


@final
class Row:
    """Counts of one sequence; the buffers hold its tokens."""

    def __init__(self, compactions: Sequence[Compactions], *, count_on: bool) -> None:
        self.groups = [RowGroup(c) for c in compactions]
        self.is_moving = False
        """Whether its slots or counts are changing now; else that was interrupted half-way."""
        # Native sliding layers keep rotated keys, so there positions must go on counting.
        self._count_on = count_on

    @property
    def num_seen(self) -> int:
        """Tokens read and written so far."""
        return self.groups[0].state.num_seen

    def room(self) -> int:
        """How many tokens the next forward can bring without a compaction inside it."""
        return min(group.room() for group in self.groups)

    def next_position(self) -> int:
        """Position of the next token: its slot, where the model allows.

        Of several groups, the slot of the largest: there positions change least often.
        """
        largest = max(self.groups, key=lambda group: group.schedule.capacity).settled()
        return largest.num_seen if self._count_on else largest.num_cached

    def begin(self) -> list[Move | None]:
        """For each group, what its layers must do before the next token.

        `is_moving` is set from here until they have.

        Raises:
            UnsupportedOperationError: that was begun before and did not end.
        """
        self.validate_whole()
        position = self.next_position()
        self.is_moving = True
        return [group.begin(position) for group in self.groups]

    def validate_whole(self) -> None:
        """Refuse to go on where a change did not end."""
        if self.is_moving:
            raise UnsupportedOperationError(
                "the last change of this sequence was interrupted half-way, so its layers hold "
                "different tokens; close it, and read its text or a snapshot again"
            )

    def copy(self) -> "Row":
        """One that goes on by itself."""
        row = copy(self)
        row.groups = [copy(group) for group in self.groups]
        return row

    def commit(self, num_new: int) -> None:
        """Count new tokens."""
        for group in self.groups:
            group.commit(num_new)
