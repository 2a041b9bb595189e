"""The operations on stored keys and values that a compaction consists of."""

from abc import ABC, abstractmethod
from typing import final

from torch import Tensor


class CompactionOps(ABC):
    """The operations of a compaction. All implementations agree bit for bit."""

    @abstractmethod
    def gather(self, stored: Tensor, slots: Tensor, start: int) -> None:
        """Move the surviving slots to the front, in place.

        Args:
            stored: [H, C, ...].
            slots: the surviving slots, increasing, int64 [N].
            start: slots before it already are where they belong.
        """

    @abstractmethod
    def rotate(self, keys: Tensor, cosines: Tensor, sines: Tensor, partners: Tensor) -> Tensor:
        """Return each number times its cosine, plus its partner times its sine, rounded once.

        Args:
            keys: [1, H, N, D], contiguous in D.
            cosines: float32 [N, D].
            sines: float32 [N, D], signed.
            partners: for each of the D numbers of a key, the index of its partner, int64 [D].

        Returns:
            New keys [1, H, N, D] of the same type.
        """

    @abstractmethod
    def move(self, stored: Tensor, moves: Tensor) -> None:
        """Move runs of slots to other places, one after the other, in place.

        Args:
            stored: [P, ...].
            moves: the first slot, the slot that it becomes and the number of slots of each run,
                int64 [M, 3] on the CPU. A run may overlap its new place.
        """


@final
class TorchCompactionOps(CompactionOps):
    """The operations with torch's operators, on any device."""

    def gather(self, stored: Tensor, slots: Tensor, start: int) -> None:
        """Copy the surviving slots out, and back in."""
        stored[:, start : len(slots)] = stored.index_select(1, slots[start:])

    def rotate(self, keys: Tensor, cosines: Tensor, sines: Tensor, partners: Tensor) -> Tensor:
        """Rotate in float32, and round once to the type of the keys."""
        wide = keys.float()
        return (wide * cosines + wide[..., partners] * sines).to(keys.dtype)

    def move(self, stored: Tensor, moves: Tensor) -> None:
        """Copy each run out, and back in."""
        for start, to, number in moves.tolist():
            stored[to : to + number] = stored[start : start + number].clone()
