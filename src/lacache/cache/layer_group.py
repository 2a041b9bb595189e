"""The layers of one head group of the transformers cache, with tensors of their own."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lacache.cache.encoded import EncodedStates
from lacache.cache.group_state import CompactionTables, GroupState
from lacache.errors import UnsupportedOperationError
from lacache.models.rotary import RotaryTables, Rotation
from lacache.policies.kept import KeptTokens, kept_after
from lacache.policies.schedule import Schedule, State


@final
@dataclass
class _Forward:
    """The plan of the open forward, for every layer."""

    first_position: int
    num_new: int
    dense: KeptTokens | None
    """What a dense prefill stores of the new tokens; None if it is not one."""
    surviving: Tensor | None
    """Slots [patterns, N] that a compaction leaves; None without one."""
    in_place: Tensor | None
    """Distance by which each stored key [patterns, N] is rotated in place; None for none."""
    touched: bool
    """Whether anything has changed, so that the forward cannot be tried again."""


@final
class LayerGroup:
    """The layers of one head group; all hold equally many tokens of every sequence in the batch.

    A forward is bracketed: `begin` plans, each layer applies the plan, `commit` counts. Layers
    store each key once, as the model gave it or where a compaction has renumbered it.
    `to_positions` rotates those that move (the sinks, or all keys where they stand at their slots)
    for the attention of one forward.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._compaction_tables = CompactionTables(schedule)
        self._group_state = GroupState(self._compaction_tables)
        # Brought up to date by `kept` only, as no forward needs it.
        self._kept = KeptTokens(schedule)
        self._rotations: dict[tuple[int, Rotation], RotaryTables] = {}
        self._forward: _Forward | None = None

    @property
    def schedule(self) -> Schedule:
        """The schedule of the group."""
        return self._group_state.schedule

    @property
    def patterns(self) -> list[int]:
        """Pattern numbers of the schedule; layers give the index of theirs in this list."""
        return self._compaction_tables.patterns

    @property
    def num_compactions(self) -> int:
        """Compactions so far; a dense prefill that evicts counts as one."""
        return self._group_state.num_compactions

    @property
    def state(self) -> State:
        """Counts now; outside of a forward a compaction that is due has not run yet."""
        return self._group_state.state

    def settled(self) -> State:
        """Return the counts that the next token finds: after a compaction that is due."""
        return self._group_state.settled()

    def room(self) -> int:
        """Return how many tokens the next forward can bring without a compaction inside it."""
        return self._group_state.room()

    def kept(self) -> KeptTokens:
        """Return which tokens the layers hold, by pattern number."""
        self._kept.advance(self.state.num_seen - self._kept.state.num_seen)
        if self._kept.state != self.state:  # an interrupted forward has compacted already
            self._kept.settle()
        return self._kept

    def mask_sizes(self, num_new: int) -> tuple[int, int]:
        """Return length and offset of the keys that the next forward attends to."""
        state = self.settled()
        return state.num_cached + num_new, state.num_evicted

    def begin(
        self, num_new: int, first_position: int, *, dense: bool = False, renumber: bool = False
    ) -> None:
        """Open a forward; compact if it is due.

        Args:
            num_new: tokens of the forward.
            first_position: position of the first.
            dense: the new tokens attend to each other in full, and only those that the schedule
                keeps are stored.
            renumber: see `GroupState.begin`.

        Raises:
            UnsupportedOperationError: the last forward was interrupted.
        """
        failed = self._forward
        if failed is not None and failed.touched:
            raise UnsupportedOperationError(
                "the last forward was interrupted half-way, so layers hold different tokens; "
                "call cache.reset() and prefill the sequence again"
            )
        self._forward = forward = _Forward(
            first_position,
            num_new,
            dense=kept_after(self.schedule, num_new) if dense else None,
            # If the last forward failed early, its compaction is still to be applied.
            surviving=failed.surviving if failed is not None else None,
            in_place=failed.in_place if failed is not None else None,
            touched=True,
        )
        if not dense:
            plan = self._group_state.begin(first_position, renumber=renumber)
            if plan is not None:
                self._rotations.clear()
                if plan.sources is not None:
                    forward.surviving = plan.sources
                if plan.in_place is not None:
                    forward.in_place = plan.in_place
        forward.touched = False

    def commit(self) -> None:
        """Close the forward: count its tokens."""
        forward = self._open_forward()
        forward.touched = True
        if forward.dense is None:
            self._group_state.commit(forward.num_new)
        else:
            self._kept = kept = forward.dense
            tokens = torch.tensor([kept.by_pattern[p] for p in self.patterns], dtype=torch.long)
            self._group_state.restore(
                kept.state,
                origin=forward.first_position,
                num_compactions=int(kept.state.num_evicted > 0),
                original_positions=forward.first_position + tokens,
            )
            self._rotations.clear()
        self._forward = None

    def touch(self) -> None:
        """Note that a layer has begun to change.

        Raises:
            UnsupportedOperationError: no forward is open.
        """
        self._open_forward().touched = True

    def num_keys(self) -> int:
        """Return the number of keys in the open forward, new tokens included."""
        forward = self._open_forward()
        return forward.num_new if self.is_dense else self.state.num_cached + forward.num_new

    @property
    def is_dense(self) -> bool:
        """Whether the open forward is a dense prefill."""
        return self._open_forward().dense is not None

    def surviving_slots(self, pattern: int) -> Tensor | None:
        """Return the slots [N] that a layer keeps before it inserts; None for all.

        In a dense prefill they are the new tokens that it stores.
        """
        forward = self._open_forward()
        if forward.dense is not None:
            tokens = forward.dense.by_pattern[self.patterns[pattern]]
            return torch.tensor(tokens, dtype=torch.long)
        return None if forward.surviving is None else forward.surviving[pattern]

    def renumbered(
        self, keys: EncodedStates, pattern: int, rotation: Rotation | None
    ) -> EncodedStates:
        """Return stored keys [B, H, N, D] after the compaction, moved where it renumbers them.

        Those that move are decoded, rotated and encoded again. The first slots keep what the model
        gave; `to_positions` rotates them from there.
        """
        in_place = self._open_forward().in_place
        if in_place is None or rotation is None:
            return keys
        start = min(self.schedule.num_moving, keys.num_slots)
        shifts = in_place[pattern, start:]
        moved = keys.between(start, keys.num_slots).decode_wide()
        rotated = rotation.rotate(moved, rotation.tables(shifts.to(moved.device)))
        return keys.between(0, start).append(EncodedStates.encode(rotated, keys.codec))

    def to_positions(self, keys: EncodedStates, pattern: int, rotation: Rotation | None) -> Tensor:
        """Return keys [B, H, N + Q, D], stored and new, decoded where they stand in this forward.

        Keys that move are rounded to the format of the others once more, as the engine does, which
        stores them rotated. What is stored here stays as it is.
        """
        if rotation is None:
            return keys.decode()
        tables = self._rotary_tables(pattern, rotation, keys.device)
        num_moved = tables[0].shape[1]
        if num_moved == 0:
            return keys.decode()
        moved = rotation.rotate(keys.between(0, num_moved).decode_wide(), tables)
        rounded = EncodedStates.encode(moved, keys.codec).decode()
        return torch.cat([rounded, keys.between(num_moved, keys.num_slots).decode()], dim=-2)

    def _rotary_tables(
        self, pattern: int, rotation: Rotation, device: torch.device
    ) -> RotaryTables:
        """Return rotary tables up to the last slot that has moved; computed once a compaction."""
        found = self._rotations.get((pattern, rotation))
        if found is None:
            shifts = self._group_state.shifts()[pattern]
            moved = shifts.nonzero()
            num_moved = int(moved[-1]) + 1 if len(moved) else 0
            found = rotation.tables(shifts[:num_moved].to(device))
            self._rotations[pattern, rotation] = found
        return found[0].to(device), found[1].to(device)

    def _open_forward(self) -> _Forward:
        if self._forward is None:
            raise UnsupportedOperationError(
                "the cache was updated outside of its model's forward; call the model that it "
                "was made for, or make a new cache with LaCache(model, budget=512)"
            )
        return self._forward
