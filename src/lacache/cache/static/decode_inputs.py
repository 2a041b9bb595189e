"""The tensors that a decode step reads besides slots, at addresses that never change."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from lacache.cache.sequence_state import SequenceState
from lacache.cache.static.pool import SlotPool


@final
@dataclass(frozen=True)
class PoolInputs:
    """Places of the new token in each KV head of a pool, set anew before each decode step."""

    pool: SlotPool
    slots: Tensor
    """The slot of the new token [B, T]."""
    indices: Tensor
    """Its index in `Storage.flat` [B, T]."""

    def update(self, slots: Tensor) -> None:
        """Set the tensors, given the slot of the new token in each head group [B, G]."""
        self.slots.copy_(slots[:, self.pool.groups])
        torch.add(self.pool.first_slots, self.slots, out=self.indices)


@final
@dataclass
class DecodeInputs:
    """Slots, masks and positions of every batch slot, set anew before each decode step.

    The tensors are allocated once, so that a compiled step finds them at the same addresses.
    """

    positions: Tensor
    """Position ids [B, 1]."""
    active: Tensor
    """Batch slots that bring a token, bool [B]; the others change nothing."""
    slots: Tensor
    """The slot of the new token in each head group [B, G]."""
    visible: tuple[Tensor, ...]
    """For each head group, the slots that attention sees, bool [B, 1, 1, C]."""
    pools: tuple[PoolInputs, ...]
    """For each pool, the slots and indices of the new token."""
    ring_slots: dict[int, Tensor]
    """For each window size, the slot of the new token [B]."""
    ring_last: dict[int, Tensor]
    """For each window size, the last slot that attention sees [B, 1]."""
    ring_visible: dict[int, Tensor]
    """For each window size, the slots that attention sees, bool [B, 1, 1, W]."""
    _num_seen: tuple[tuple[int, int], ...] = ()
    """The batch slots that brought a token last, and the tokens that each had seen before."""

    @classmethod
    def allocate(
        cls,
        batch_size: int,
        capacities: Sequence[int],
        pools: Sequence[SlotPool],
        windows: Collection[int],
        device: torch.device,
    ) -> "DecodeInputs":
        """Allocate the tensors, for head groups of these capacities and these window sizes."""

        def longs(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.long, device=device)

        def bools(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.bool, device=device)

        return cls(
            positions=longs(batch_size, 1),
            active=bools(batch_size),
            slots=longs(batch_size, len(capacities)),
            visible=tuple(bools(batch_size, 1, 1, capacity) for capacity in capacities),
            pools=tuple(
                PoolInputs(pool, *(longs(*pool.first_slots.shape) for _ in range(2)))
                for pool in pools
            ),
            ring_slots={window: longs(batch_size) for window in sorted(windows)},
            ring_last={window: longs(batch_size, 1) for window in sorted(windows)},
            ring_visible={window: bools(batch_size, 1, 1, window) for window in sorted(windows)},
        )

    def update(
        self,
        sequences: Sequence[SequenceState],
        active: Sequence[int],
        *,
        masks: bool,
        is_calm: bool,
    ) -> None:
        """Set the tensors for one token in each of some batch slots.

        Args:
            sequences: in each batch slot.
            active: the batch slots that bring a token.
            masks: whether to set masks too.
            is_calm: whether `SequenceState.is_calm` was true of the active ones.
        """
        former = tuple((index, sequences[index].num_seen - 1) for index in active)
        if is_calm and former == self._num_seen:
            # Those that are inactive bring nothing, wherever they would.
            self.positions += self.active[:, None]
            self.slots += self.active[:, None]
        else:
            self._start(sequences, active)
        self._num_seen = tuple((index, num_seen + 1) for index, num_seen in former)
        for pool in self.pools:
            pool.update(self.slots)
        for window, slots in self.ring_slots.items():
            _set(slots, [sequence.num_seen % window for sequence in sequences])
            # All are visible once the window is full.
            last = self.ring_last[window]
            _set(last, [[min(sequence.num_seen, window - 1)] for sequence in sequences])
        if masks:
            for index, visible in enumerate(self.visible):
                _show_up_to(visible, self.slots[:, index])
            for window, last in self.ring_last.items():
                _show_up_to(self.ring_visible[window], last[:, 0])

    def _start(self, sequences: Sequence[SequenceState], active: Sequence[int]) -> None:
        """Set batch slots, positions and slots from the counts of all sequences."""
        _set(self.active, [batch_slot in active for batch_slot in range(len(sequences))])
        _set(self.positions, [[sequence.next_position()] for sequence in sequences])
        # Inactive sequences may have no room; their new token is not stored.
        _set(
            self.slots,
            [
                [
                    min(group.state.num_cached, num_slots - 1)
                    for group, num_slots in zip(each.groups, each.num_slots(), strict=True)
                ]
                for each in sequences
            ],
        )

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all tensors, whose addresses never change."""
        pools = [t for one in self.pools for t in (one.slots, one.indices, one.pool.first_slots)]
        rings = (self.ring_slots, self.ring_last, self.ring_visible)
        return (
            self.positions,
            self.active,
            self.slots,
            *self.visible,
            *pools,
            *(tensor for tensors in rings for tensor in tensors.values()),
        )


def _set(target: Tensor, numbers: list[Any]) -> None:
    """Fill a tensor without waiting for a GPU that is busy."""
    source = torch.tensor(numbers, dtype=target.dtype, pin_memory=target.is_cuda)
    target.copy_(source, non_blocking=True)


def _show_up_to(visible: Tensor, last: Tensor) -> None:
    """Make the slots of `visible` [B, 1, 1, C] true up to `last` [B], inclusive."""
    slots = torch.arange(visible.shape[-1], device=visible.device)
    visible.copy_((slots <= last[:, None])[:, None, None])
