"""The two things that a compaction does to what is stored: pick slots, and turn keys."""

from abc import ABC, abstractmethod
from typing import final

from torch import Tensor


class Mover(ABC):
    """One way to do them; all ways agree bit for bit."""

    @abstractmethod
    def keep(self, stored: Tensor, slots: Tensor, start: int) -> None:
        """Move some slots to the front, in place.

        Args:
            stored: [H, C, ...].
            slots: which, increasing, int64 [N].
            start: those before it stay where they are.
        """

    @abstractmethod
    def turn(self, keys: Tensor, cosines: Tensor, sines: Tensor, partners: Tensor) -> Tensor:
        """Each number times its cosine, plus its partner times its sine, rounded once at the end.

        Args:
            keys: [1, H, N, D], where the D numbers of a key lie side by side.
            cosines: float32 [N, D].
            sines: likewise; signed.
            partners: which number of the key is the partner of each, int64 [D].

        Returns:
            New keys [1, H, N, D] of the same type.
        """


@final
class TorchMover(Mover):
    """With torch's operators, on any device."""

    def keep(self, stored: Tensor, slots: Tensor, start: int) -> None:
        """A copy of all, and back."""
        stored[:, start : len(slots)] = stored.index_select(1, slots[start:])

    def turn(self, keys: Tensor, cosines: Tensor, sines: Tensor, partners: Tensor) -> Tensor:
        """In float32."""
        wide = keys.float()
        return (wide * cosines + wide[..., partners] * sines).to(keys.dtype)
