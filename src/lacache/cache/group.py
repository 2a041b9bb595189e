"""A group of layers that share one schedule: counts, positions and what each forward must do."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lacache.errors import UnsupportedOperationError
from lacache.models.rotary import Rotation, Tables
from lacache.policies.kept import KeptTokens, kept_after
from lacache.policies.schedule import Schedule, State


@final
@dataclass
class _Forward:
    """What the forward that is open does to every layer."""

    positions: Tensor
    """Of the new tokens [Q]."""
    dense: KeptTokens | None
    """What is stored of the new tokens in a dense prefill."""
    surviving: dict[int, Tensor]
    """Per pattern, the slots [N] that a compaction leaves; empty without one."""
    touched: bool
    """Whether something has changed, so that the forward cannot simply be tried again."""


@final
class LayerGroup:
    """Layers with one schedule, so that all hold equally many tokens.

    A forward is bracketed: `begin` decides, each layer applies, `commit` counts. Positions are
    those that the model uses: slots (0 .. capacity - 1), or transformers' ever growing count, in
    which slot s stands at `s + num_evicted`. Only differences matter, so both can be mixed.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.compactions = 0
        self.kept = KeptTokens(schedule)
        self._came_in_at = {p: torch.empty(0, dtype=torch.long) for p in self.kept.by_pattern}
        self._origin = 0
        self._tables: dict[tuple[int, Rotation], Tables] = {}
        self._forward: _Forward | None = None

    @property
    def state(self) -> State:
        """Counts before the forward that is running, after its compaction."""
        return self.kept.state

    def settled(self) -> State:
        """Counts as the next token finds them."""
        return self.schedule.settle(self.state)

    def room(self) -> int:
        """How many tokens the next forward can bring without a compaction inside it."""
        return self.schedule.room(self.settled())

    def mask_sizes(self, num_new: int) -> tuple[int, int]:
        """Length and offset of the keys that the next forward attends to."""
        state = self.settled()
        return state.num_cached + num_new, state.num_evicted

    def begin(self, num_new: int, first_position: int, *, dense: bool = False) -> None:
        """Open a forward of `num_new` tokens from `first_position` on; compact if it is due.

        With `dense` the tokens attend to each other in full, and only what the schedule keeps
        of them is stored.

        Raises:
            UnsupportedOperationError: the last forward was interrupted.
        """
        failed = self._forward
        if failed is not None and failed.touched:
            raise UnsupportedOperationError(
                "the last forward was interrupted half-way, so layers hold different tokens; "
                "call cache.reset() and read the text again"
            )
        self._forward = forward = _Forward(
            positions=torch.arange(first_position, first_position + num_new),
            dense=kept_after(self.schedule, num_new) if dense else None,
            # A forward that failed early leaves its compaction to this one.
            surviving=failed.surviving if failed is not None else {},
            touched=True,
        )
        if not dense and self.schedule.is_full(self.state):
            forward.surviving = self._compact()
        origin = first_position - self.state.num_cached
        if origin != self._origin:
            self._origin = origin
            self._tables.clear()
        forward.touched = False

    def commit(self) -> None:
        """Close the forward: its tokens count now."""
        forward = self._open_forward()
        forward.touched = True
        if forward.dense is not None:
            self.kept = forward.dense
            self.compactions += self.state.num_evicted > 0
            self._came_in_at = {
                pattern: forward.positions[torch.tensor(tokens, dtype=torch.long)]
                for pattern, tokens in self.kept.by_pattern.items()
            }
            self._tables.clear()
        else:
            self.kept.insert(len(forward.positions))
            for pattern, came_in_at in self._came_in_at.items():
                self._came_in_at[pattern] = torch.cat([came_in_at, forward.positions])
        self._forward = None

    def touch(self) -> None:
        """Note that a layer has begun to change.

        Raises:
            UnsupportedOperationError: no forward is open.
        """
        self._open_forward().touched = True

    def num_keys(self) -> int:
        """Keys that the new tokens of the open forward attend to, themselves included."""
        forward = self._open_forward()
        num_new = len(forward.positions)
        return num_new if forward.dense is not None else self.state.num_cached + num_new

    @property
    def is_dense(self) -> bool:
        """Whether the open forward is a dense prefill."""
        return self._open_forward().dense is not None

    def surviving_slots(self, pattern: int) -> Tensor | None:
        """Which slots [N] a layer keeps before it inserts; None for all.

        In a dense prefill, which of the new tokens it stores.
        """
        forward = self._open_forward()
        if forward.dense is not None:
            return torch.tensor(forward.dense.by_pattern[pattern], dtype=torch.long)
        return forward.surviving.get(pattern)

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

    def _compact(self) -> dict[int, Tensor]:
        surviving = {}
        for pattern in self.kept.by_pattern:
            keep = torch.ones(self.state.num_cached, dtype=torch.bool)
            for start, stop in self.schedule.evicted_slots(self.state, pattern):
                keep[start:stop] = False
            surviving[pattern] = keep.nonzero().squeeze(1)
            self._came_in_at[pattern] = self._came_in_at[pattern][surviving[pattern]]
        self.kept.compact()
        self.compactions += 1
        self._tables.clear()
        return surviving

    def _open_forward(self) -> _Forward:
        if self._forward is None:
            raise UnsupportedOperationError(
                "the cache was updated outside of its model's forward; call the model that it "
                "was made from, or make a new cache with LaCache.from_model(model)"
            )
        return self._forward
