"""A group of layers that share one schedule: counts, positions and what each forward must do."""

from typing import final

import torch
from torch import Tensor

from lacache.cache.rotary import Rotation, Tables
from lacache.core.errors import UnsupportedOperationError
from lacache.core.kept import KeptTokens, kept_after
from lacache.core.schedule import Schedule, State


@final
class LayerGroup:
    """Layers with one schedule, so that all hold equally many tokens.

    A forward is bracketed: `begin` decides, each layer applies, `commit` counts. Positions are
    those that the model uses: slots (0 .. capacity - 1) in our own loops, or transformers' ever
    growing count, in which slot s stands at `s + num_evicted`. Only differences matter.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.rebind(schedule)

    def rebind(self, schedule: Schedule) -> None:
        """Start over, empty, with a schedule."""
        self.schedule = schedule
        self.compactions = 0
        self.kept = KeptTokens(schedule)
        self._came_in_at = {p: torch.empty(0, dtype=torch.long) for p in self.kept.by_pattern}
        self._origin = 0
        self._surviving: dict[int, Tensor] = {}
        self._dense: KeptTokens | None = None
        self._tables: dict[tuple[int, Rotation], Tables] = {}
        self._new: Tensor | None = None
        self._touched = False

    @property
    def state(self) -> State:
        """Counts before the forward that is running, after its compaction."""
        return self.kept.state

    def room(self) -> int:
        """How many tokens the next forward can bring without a compaction inside it."""
        return self.schedule.capacity - self.schedule.settle(self.state).num_cached

    def mask_sizes(self, num_new: int) -> tuple[int, int]:
        """Length and offset of the keys that the next forward attends to."""
        state = self.schedule.settle(self.state)
        return state.num_cached + num_new, state.num_evicted

    def begin(self, num_new: int, first_position: int, *, dense: bool = False) -> None:
        """Open a forward of `num_new` tokens from `first_position` on; compact if it is due.

        With `dense` the tokens attend to each other in full, and only what the schedule keeps
        of them is stored.
        """
        if self._touched:
            raise UnsupportedOperationError(
                "the last forward was interrupted half-way, so layers hold different tokens; "
                "call cache.reset() and read the text again"
            )
        if dense:
            self._dense = kept_after(self.schedule, num_new)
        elif self.schedule.is_full(self.state):
            self._compact()
        origin = first_position - self.state.num_cached
        if origin != self._origin:
            self._origin = origin
            self._tables.clear()
        self._new = torch.arange(first_position, first_position + num_new)

    def commit(self) -> None:
        """Close the forward: its tokens count now."""
        assert self._new is not None
        if self._dense is not None:
            self.kept = self._dense
            self._came_in_at = {
                p: self._new[torch.tensor(tokens, dtype=torch.long)]
                for p, tokens in self.kept.by_pattern.items()
            }
            self._origin = -1  # nothing rotated yet, so any change of origin counts as one
            self._dense = None
        else:
            self.kept.insert(len(self._new))
            for pattern, came_in_at in self._came_in_at.items():
                self._came_in_at[pattern] = torch.cat([came_in_at, self._new])
        self._surviving.clear()
        self._new = None
        self._touched = False

    def touch(self) -> None:
        """Note that a layer has begun to change.

        Raises:
            UnsupportedOperationError: no forward is open.
        """
        if self._new is None:
            raise UnsupportedOperationError(
                "the cache was updated outside of its model's forward; call the model that it "
                "was made from, or make a new cache with LaCache.from_model(model)"
            )
        self._touched = True

    @property
    def is_dense(self) -> bool:
        """Whether the open forward is a dense prefill."""
        return self._dense is not None

    def surviving_slots(self, pattern: int) -> Tensor | None:
        """Which slots [N] a layer keeps before it inserts; None for all."""
        if self._dense is not None:
            return torch.tensor(self._dense.by_pattern[pattern], dtype=torch.long)
        return self._surviving.get(pattern)

    def to_slots(self, keys: Tensor, pattern: int, rotation: Rotation | None) -> Tensor:
        """Keys [B, H, N + Q, D], stored and new, rotated to the slots where they stand now."""
        if rotation is None:
            return keys
        tables = self._tables_for(pattern, rotation, keys.device)
        num_moved = tables[0].shape[1]
        if num_moved == 0:
            return keys
        moved = rotation.rotate(keys[:, :, :num_moved], tables)
        return torch.cat([moved, keys[:, :, num_moved:]], dim=-2)

    def _tables_for(self, pattern: int, rotation: Rotation, device: torch.device) -> Tables:
        """Tables for the leading slots up to the last that has moved; made once a compaction."""
        found = self._tables.get((pattern, rotation))
        if found is None:
            came_in_at = self._came_in_at[pattern]
            shifts = self._origin + torch.arange(len(came_in_at)) - came_in_at
            moved = shifts.nonzero()
            num_moved = int(moved[-1]) + 1 if len(moved) else 0
            found = rotation.tables(shifts[:num_moved].to(device))
            self._tables[pattern, rotation] = found
        return found[0].to(device), found[1].to(device)

    def _compact(self) -> None:
        for pattern in self.kept.by_pattern:
            keep = torch.ones(self.state.num_cached, dtype=torch.bool)
            for start, stop in self.schedule.dropped(self.state, pattern):
                keep[start:stop] = False
            slots = keep.nonzero().squeeze(1)
            self._surviving[pattern] = slots
            self._came_in_at[pattern] = self._came_in_at[pattern][slots]
        self.kept.compact()
        self.compactions += 1
        self._tables.clear()
