"""The tensors that a decode step reads besides the buffers: slots, masks and positions."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from lacache.cache.sequence_state import SequenceState


@final
@dataclass(frozen=True)
class DecodeInputs:
    """Slots, masks and positions of every batch slot, set anew before each decode step.

    The tensors are allocated once, so that a compiled step finds them at the same addresses.
    """

    positions: Tensor
    """Position ids [B, 1]."""
    active: Tensor
    """Batch slots that bring a token, bool [B]; the others compute in vain and change nothing."""
    slots: tuple[Tensor, ...]
    """For each head group, the slot of the new token [B]."""
    visible: tuple[Tensor, ...]
    """For each head group, the slots that attention sees, bool [B, 1, 1, C]."""
    ring_slots: dict[int, Tensor]
    """For each window size, the slot of the new token [B]."""
    ring_visible: dict[int, Tensor]
    """For each window size, the slots that attention sees, bool [B, 1, 1, W]."""

    @classmethod
    def allocate(
        cls,
        batch_size: int,
        capacities: Sequence[int],
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
            slots=tuple(longs(batch_size) for _ in capacities),
            visible=tuple(bools(batch_size, 1, 1, capacity) for capacity in capacities),
            ring_slots={window: longs(batch_size) for window in sorted(windows)},
            ring_visible={window: bools(batch_size, 1, 1, window) for window in sorted(windows)},
        )

    def update(self, sequences: Sequence[SequenceState], active: Collection[int]) -> None:
        """Set the tensors for one token in each of the batch slots `active`."""
        _set(self.active, [batch_slot in active for batch_slot in range(len(sequences))])
        _set(self.positions, [[sequence.next_position()] for sequence in sequences])
        for index, slots in enumerate(self.slots):
            last = self.visible[index].shape[-1] - 1
            num_cached = [sequence.groups[index].state.num_cached for sequence in sequences]
            _set(slots, [min(slot, last) for slot in num_cached])
            _show_up_to(self.visible[index], slots)
        for window, slots in self.ring_slots.items():
            # All are visible once the window is full.
            _set(slots, [min(sequence.num_seen, window) for sequence in sequences])
            _show_up_to(self.ring_visible[window], slots)
            _set(slots, [sequence.num_seen % window for sequence in sequences])

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all tensors, whose addresses never change."""
        rings = (*self.ring_slots.values(), *self.ring_visible.values())
        return (self.positions, self.active, *self.slots, *self.visible, *rings)


def _set(target: Tensor, numbers: list[Any]) -> None:
    """Fill a tensor without waiting for a GPU that is busy."""
    source = torch.tensor(numbers, dtype=target.dtype, pin_memory=target.is_cuda)
    target.copy_(source, non_blocking=True)


def _show_up_to(visible: Tensor, last: Tensor) -> None:
    """Make the slots of `visible` [B, 1, 1, C] true up to `last` [B], inclusive."""
    slots = torch.arange(visible.shape[-1], device=visible.device)
    visible.copy_((slots <= last[:, None])[:, None, None])
