"""Where one sequence stands in one group, and what has to move before its next tokens."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lacache.cache.static.compactions import Compactions
from lacache.policies.schedule import State


@final
@dataclass(frozen=True)
class Move:
    """What a compaction, or positions that start elsewhere, ask of every layer of a group."""

    num_cached: int
    """Slots in use before."""
    unsaved: int
    """From this slot on, keys stand only where attention reads them."""
    surviving: Tensor | None
    """Slots that stay, for each pattern [patterns, N]; None without a compaction."""
    shifts: Tensor
    """By how many positions each key has moved since it came in [patterns, N]."""
    turned: tuple[tuple[int, int], ...]
    """For each pattern, the slots `(start, stop)` whose keys must be turned by their shifts.

    Before them, keys have kept their slots and positions; after them, their positions.
    """


@final
class RowGroup:
    """Counts of one sequence in one group; `LayerGroup` over memory of fixed size.

    The key in slot s stands at position `origin + s`. Between two moves nothing but counts change,
    so most tokens cost nothing here.
    """

    def __init__(self, compactions: Compactions) -> None:
        self._compactions = compactions
        self.schedule = compactions.schedule
        self.state = self.schedule.start()
        self.origin = 0
        self.num_compactions = 0
        # Where keys came in, for each pattern; later ones came in where they stand. Replaced, never
        # changed, so that copies can share it.
        self._came_in_at = torch.empty(len(compactions.patterns), 0, dtype=torch.long)

    def settled(self) -> State:
        """Counts as the next token finds them."""
        return self.schedule.settle(self.state)

    def room(self) -> int:
        """How many tokens can come before another compaction than the one that is due."""
        return self.schedule.room(self.settled())

    @property
    def num_saved(self) -> int:
        """Slots whose keys are held as they came in; later ones have not moved since."""
        return self._came_in_at.shape[1]

    def came_in_at(self) -> Tensor:
        """Positions [patterns, N] at which the keys in the slots came in."""
        patterns, known = self._came_in_at.shape
        newer = self.origin + torch.arange(known, self.state.num_cached)
        return torch.cat([self._came_in_at, newer.expand(patterns, -1)], dim=1)

    def begin(self, first_position: int) -> Move | None:
        """Prepare for tokens from `first_position` on: compact if it is due.

        Returns:
            What the layers must do now, if anything.
        """
        before = self.state
        after = self.settled()
        origin = first_position - after.num_cached
        if after is before and origin == self.origin:
            return None
        came_in_at = self.came_in_at()
        unsaved, former_origin = self.num_saved, self.origin
        surviving = None
        if after is not before:
            surviving = self._compactions.surviving(before)
            came_in_at = came_in_at.gather(1, surviving)
            self.num_compactions += 1
        self.state, self.origin, self._came_in_at = after, origin, came_in_at
        former = torch.arange(after.num_cached) if surviving is None else surviving
        turned = self._turned(surviving, former_origin + former)
        return Move(before.num_cached, unsaved, surviving, self._shifts(), turned)

    def restore(self, state: State, origin: int, num_compactions: int, came_in_at: Tensor) -> Move:
        """Stand where another sequence stood.

        Args:
            state: its counts.
            origin: its own.
            num_compactions: its own.
            came_in_at: its own [patterns, N]; all its keys are held as they came in.

        Returns:
            What the layers must do now.
        """
        self.state, self.origin, self.num_compactions = state, origin, num_compactions
        self._came_in_at = came_in_at
        num_cached = state.num_cached
        turned = ((0, num_cached),) * len(came_in_at)
        return Move(num_cached, num_cached, None, self._shifts(), turned)

    def commit(self, num_new: int) -> None:
        """Count tokens that came in without a compaction between them."""
        self.state = self.state.insert(num_new)

    def _turned(self, surviving: Tensor | None, stood: Tensor) -> tuple[tuple[int, int], ...]:
        """What of a move must be turned; keys stood at positions [patterns or 1, N]."""
        slots = torch.arange(self.num_saved)
        turns = (stood != self.origin + slots).expand_as(self._came_in_at)
        changes = turns if surviving is None else turns | (surviving != slots)
        turned = []
        for changing, turning in zip(changes, turns, strict=True):
            start = _first(changing)
            turned.append((start, max(start, len(turning) - _first(turning.flip(0)))))
        return tuple(turned)

    def _shifts(self) -> Tensor:
        """By how many positions each key that is held as it came in has moved [patterns, N]."""
        return self.origin + torch.arange(self.num_saved) - self._came_in_at


def _first(marks: Tensor) -> int:
    """The first slot that is marked of [N]; N where none is."""
    found = marks.nonzero()
    return int(found[0]) if len(found) else len(marks)
