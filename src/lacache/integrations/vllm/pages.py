"""A layer's pages, and slots in them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from lacache.integrations.vllm.arrays import Integers
from lacache.integrations.vllm.rotary import table_of_model, turn
from lacache.integrations.vllm.rounds import Moves

_PIECE = 16_384
"""Slots that are moved at once."""


@final
@dataclass(frozen=True)
class PageSlots:
    """Slots of pages as tensors are indexed by them: [...], each int64."""

    flat: Tensor
    page: Tensor
    offset: Tensor

    @classmethod
    def of(cls, slots: Integers, page_size: int, device: torch.device) -> "PageSlots":
        """From page slots."""
        flat = torch.from_numpy(slots).to(device, non_blocking=True)
        return cls(flat, flat // page_size, flat % page_size)

    def __getitem__(self, index: Any) -> "PageSlots":
        return PageSlots(self.flat[index], self.page[index], self.offset[index])


@final
@dataclass(frozen=True)
class SlotMoves:
    """`Moves` as tensors."""

    sources: PageSlots
    targets: PageSlots
    positions: Tensor

    @classmethod
    def of(cls, moves: Moves, page_size: int, device: torch.device) -> "SlotMoves":
        """From arrays."""
        return cls(
            PageSlots.of(moves.sources, page_size, device),
            PageSlots.of(moves.targets, page_size, device),
            torch.from_numpy(moves.positions).to(device, non_blocking=True),
        )


class Pages(ABC):
    """A layer's pages, in three parts: turned keys, values, and keys as they came in.

    `values` and `keys` are [pages, KV heads, page size, head size], in any strides. How turned keys
    are kept is the business of the attention that reads them.
    """

    values: Tensor
    keys: Tensor

    @abstractmethod
    def store(self, slots: PageSlots, turned_keys: Tensor, values: Tensor) -> None:
        """Put what attention reads, [tokens, KV heads, head size], into slots."""

    @final
    def write(self, slots: PageSlots, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put keys (not turned) and values, [tokens, KV heads, head size], into slots."""
        self.keys[slots.page, :, slots.offset] = keys
        turned = keys.clone(memory_format=torch.contiguous_format)
        turn(table_of_model(), turned, positions)
        self.store(slots, turned, values)

    @final
    def move(self, moves: SlotMoves, row: int) -> None:
        """Put what is in a pattern's sources into the targets.

        Piece by piece, since vLLM sets no memory aside for copies. Within a sequence both increase,
        and no source is before its target, so a piece writes over none that is still to be read.
        """
        for start in range(0, moves.positions.shape[0], _PIECE):
            piece = slice(start, start + _PIECE)
            sources, targets = moves.sources[row, piece], moves.targets[piece]
            keys = self.keys[sources.page, :, sources.offset]
            self.write(targets, moves.positions[piece], keys, self.values_at(sources))

    @final
    def values_at(self, slots: PageSlots) -> Tensor:
        """[tokens, KV heads, head size]."""
        return self.values[slots.page, :, slots.offset]
