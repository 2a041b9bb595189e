"""Positions of the tokens of a bounded cache, by counts alone (docs/adr/0022)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from lacache.policies.schedule import Schedule, State


@final
@dataclass(frozen=True)
class QueryPositions:
    """Where the next token of a sequence stands, and which compactions renumber its keys.

    With original positions tokens count on from a base. Distances to the oldest tokens would grow
    beyond what the model was trained on, so a compaction after which the positions do not last to
    the next one moves all keys to their slots first, and counting goes on from there.

    Args:
        schedules: of the head groups.
        trained_length: positions that the model was trained on; None for no limit.
        count_on: position ids never start over, since other layers hold keys at theirs. Keys are
            moved up to the next token instead.
    """

    schedules: tuple[Schedule, ...]
    trained_length: int | None
    count_on: bool

    def base(self, base: int, states: Sequence[State]) -> int:
        """Return the base that the next token finds; where it changes, keys are renumbered.

        It changes with a compaction, or after a dense prefill.

        Args:
            base: that the last token found; 0 at the start.
            states: of the head groups; a compaction that is due has not run yet.
        """
        if self.trained_length is None or not self._has_original:
            return base
        settled = self._settled(states)
        room = min(schedule.room(s) for schedule, s in zip(self.schedules, settled, strict=True))
        num_seen = settled[0].num_seen
        if num_seen - base + room <= self.trained_length:
            return base
        return num_seen - max(state.num_cached for state in settled)

    def position(self, base: int, states: Sequence[State]) -> int:
        """Return the position id of the next token; see `base` for the arguments."""
        settled = self._settled(states)
        if self.count_on:
            return settled[0].num_seen
        if self._has_original:
            return settled[0].num_seen - self.base(base, states)
        # Slots of the largest, whose positions change least often. Only differences matter.
        capacities = [schedule.capacity for schedule in self.schedules]
        return settled[capacities.index(max(capacities))].num_cached

    @property
    def _has_original(self) -> bool:
        return any(schedule.positions == "original" for schedule in self.schedules)

    def _settled(self, states: Sequence[State]) -> list[State]:
        return [s.settle(state) for s, state in zip(self.schedules, states, strict=True)]
