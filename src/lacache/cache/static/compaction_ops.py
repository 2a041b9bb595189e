"""The operations on stored keys and values that a compaction consists of."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
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
    def gather_slots(
        self, stored: Tensor, first: Tensor, patterns: Tensor, sources: Tensor, starts: Tensor
    ) -> None:
        """Do as `gather`, for many KV heads.

        Args:
            stored: [R, W].
            first: index of each head's first slot, int64 [H].
            patterns: of the heads, int64 [H].
            sources: what the slots of each pattern become, int64 [patterns, N].
            starts: first slot of each pattern that changes, int64 [patterns].
        """

    @abstractmethod
    def rotate_slots(
        self,
        stored: Tensor,
        first: Tensor,
        patterns: Tensor,
        copies: tuple[Tensor, Tensor],
        ranges: Tensor,
        tables: tuple[Tensor, Tensor],
        partners: Tensor,
    ) -> None:
        """Set slots of many KV heads to rotated copies; see `rotate`.

        Args:
            stored: [R, D].
            first: index of each head's first slot, int64 [H].
            patterns: of the heads, int64 [H].
            copies: unrotated keys [C, D] of the same type, and the index of each head's first [H].
            ranges: for each pattern the first slot and the end of the last, int64 [patterns, 2].
            tables: cosines and signed sines, each float32 [T, D], for the slots of one pattern
                after the other.
            partners: see `rotate`.
        """

    @abstractmethod
    def store_left(
        self,
        stored: Tensor,
        first: Tensor,
        moved: Sequence[Tensor],
        added: Sequence[Tensor],
        new: Tensor,
    ) -> None:
        """Store the tokens of many KV heads that are left after a chunk, in place.

        Args:
            stored: [R, W].
            first: index of each head's first slot, int64 [H].
            moved: for each head, slots and the former slots of the tokens that they get, int64
                [2, M]. No former slot is the slot of another.
            added: for each head, other slots and the indices of new tokens, int64 [2, M].
            new: [H, Q, W].
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

    def gather_slots(
        self, stored: Tensor, first: Tensor, patterns: Tensor, sources: Tensor, starts: Tensor
    ) -> None:
        """Copy the slots of a pattern's heads out, and back in."""
        for pattern, start in enumerate(starts.tolist()):
            rows = first[patterns == pattern][:, None]
            slots = sources[pattern].to(stored.device)
            targets = rows + torch.arange(start, len(slots), device=stored.device)
            stored[targets] = stored[rows + slots[start:]]

    def rotate_slots(
        self,
        stored: Tensor,
        first: Tensor,
        patterns: Tensor,
        copies: tuple[Tensor, Tensor],
        ranges: Tensor,
        tables: tuple[Tensor, Tensor],
        partners: Tensor,
    ) -> None:
        """Rotate the keys of a pattern's heads together."""
        done = 0
        for pattern, (start, stop) in enumerate(ranges.tolist()):
            mine = patterns == pattern
            slots = torch.arange(start, stop, device=stored.device)
            keys = copies[0][copies[1][mine][:, None] + slots]
            cosines, sines = (table[done : done + stop - start] for table in tables)
            rotated = self.rotate(keys[None], cosines, sines, partners)
            stored[first[mine][:, None] + slots] = rotated[0]
            done += stop - start

    def store_left(
        self,
        stored: Tensor,
        first: Tensor,
        moved: Sequence[Tensor],
        added: Sequence[Tensor],
        new: Tensor,
    ) -> None:
        """Index head by head."""
        for start, (slots, former), (targets, tokens), mine in zip(
            first, moved, added, new, strict=True
        ):
            stored[start + slots] = stored[start + former]
            stored[start + targets] = mine[tokens]

    def move(self, stored: Tensor, moves: Tensor) -> None:
        """Copy each run out, and back in."""
        for start, to, number in moves.tolist():
            stored[to : to + number] = stored[start : start + number].clone()
