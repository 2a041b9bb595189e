"""The operations on stored keys and values that a compaction consists of."""

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor


class CompactionOps(ABC):
    """The operations of a compaction. All implementations agree bit for bit."""

    @abstractmethod
    def gather(self, stored: Tensor, slots: Tensor, start: int) -> None:
        """Let each of the first slots become another, in place.

        Args:
            stored: [H, C, ...].
            slots: what slots 0 to N - 1 become, none a slot before itself, int64 [N].
            start: slots before it already are what they become.
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
    def move_few(self, stored: Tensor, first: Tensor, patterns: Tensor, moves: Tensor) -> None:
        """Move single slots of many KV heads, in place.

        Args:
            stored: [R, W].
            first: index of each head's first slot, int64 [H].
            patterns: of the heads, int64 [H].
            moves: pattern, slot and former slot of each move, by pattern, int64 [3, M]. No former
                slot is the slot of another move.
        """

    @abstractmethod
    def rotate_first(
        self,
        stored: Tensor,
        first: Tensor,
        patterns: Tensor,
        keys: Tensor,
        tables: tuple[Tensor, Tensor],
        partners: Tensor,
    ) -> None:
        """Set the first slots of many KV heads to rotated keys; see `rotate`.

        Args:
            stored: [R, D].
            first: index of each head's first slot, int64 [H].
            patterns: of the heads, int64 [H].
            keys: [H, N, D], contiguous in D, of the type of `stored`.
            tables: cosines and signed sines of each pattern, each float32 [patterns, N, D].
            partners: see `rotate`.
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

    def move_few(self, stored: Tensor, first: Tensor, patterns: Tensor, moves: Tensor) -> None:
        """Copy the slots of all heads out, and back in."""
        pattern, slots, former = moves.to(stored.device)
        head, move = (patterns[:, None] == pattern).nonzero().unbind(1)
        stored[first[head] + slots[move]] = stored[first[head] + former[move]]

    def rotate_first(
        self,
        stored: Tensor,
        first: Tensor,
        patterns: Tensor,
        keys: Tensor,
        tables: tuple[Tensor, Tensor],
        partners: Tensor,
    ) -> None:
        """Rotate the keys of all heads as those of one."""
        _, number, size = keys.shape
        cosines, sines = (table[patterns].view(-1, size) for table in tables)
        rotated = self.rotate(keys.reshape(1, 1, -1, size), cosines, sines, partners)
        slots = first[:, None] + torch.arange(number, device=stored.device)
        stored[slots.flatten()] = rotated[0, 0]

    def move(self, stored: Tensor, moves: Tensor) -> None:
        """Copy each run out, and back in."""
        for start, to, number in moves.tolist():
            stored[to : to + number] = stored[start : start + number].clone()
