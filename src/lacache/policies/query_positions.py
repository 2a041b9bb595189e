"""Positions of the tokens of a bounded cache, by counts alone (docs/adr/0022)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from lacache.policies.schedule import Schedule, State

UNKNOWN_LENGTH = 16_384
"""Trained length of a model whose configuration has none."""


@final
@dataclass(frozen=True)
class QueryPositions:
    """Position ids of the next tokens of a sequence, and the compactions that renumber its keys.

    With original positions tokens count on from a base. Distances to the oldest tokens would grow
    beyond what the model was trained on, so a compaction after which the positions do not last to
    the next one moves all keys to their slots first, and counting goes on from there.

    Args:
        schedules: of the head groups.
        trained_length: positions that the model was trained on.
        count_on: position ids never start over, since other layers hold keys at theirs. Keys are
            moved up to the next token instead.
    """

    schedules: tuple[Schedule, ...]
    trained_length: int
    count_on: bool

    def find(self, base: int, states: Sequence[State]) -> tuple[int, int]:
        """Find the next token's position id, and its base; where that changes, keys are renumbered.

        The base changes with a compaction, or after a dense prefill.

        Args:
            base: that the last token found; 0 at the start.
            states: of the head groups; a compaction that is due may not have run yet.

        Returns:
            The position id, and the base.
        """
        settled = [s.settle(state) for s, state in zip(self.schedules, states, strict=True)]
        num_seen = settled[0].num_seen
        if self._has_original:
            base = self._base(base, settled)
        if self.count_on:
            return num_seen, base
        if self._has_original:
            return num_seen - base, base
        # Slots of the largest, whose positions change least often. Only differences matter.
        capacities = [schedule.capacity for schedule in self.schedules]
        return settled[capacities.index(max(capacities))].num_cached, base

    def _base(self, base: int, settled: Sequence[State]) -> int:
        room = min(schedule.room(s) for schedule, s in zip(self.schedules, settled, strict=True))
        num_seen = settled[0].num_seen
        if num_seen - base + room <= self.trained_length:
            return base
        return num_seen - max(state.num_cached for state in settled)

    @property
    def _has_original(self) -> bool:
        return any(schedule.positions == "original" for schedule in self.schedules)
