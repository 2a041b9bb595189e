"""The pool's pages as tensors, and what compactions move in them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from lacache.integrations.vllm.rotary import model_rotary, rotate, rotate_by
from lacache.integrations.vllm.schedule_arrays import Integers
from lacache.integrations.vllm.sub_chunks import Moves, SinkMoves

_SLOTS_PER_COPY = 16_384


class Pages(ABC):
    """The pool's pages, each with slots of one KV head: rotated keys, then values.

    `values` are [pages, 1, page size, head size]. Each backend keeps rotated keys in the layout of
    its kernel, in `rotated_keys`, of the same shape. In place of slots a page can hold unrotated
    keys: `copies` [2 * pages * page size, head size].

    Args:
        kv_cache: of all pages, as vLLM allocates it.
        head_size: numbers of a key.
        page_size: slots in a page.
    """

    def __init__(self, kv_cache: Tensor, head_size: int, page_size: int) -> None:
        pages = kv_cache.view(-1, 2, page_size, head_size)
        self.rotated_keys, self.values = pages[:, :1], pages[:, 1:]
        self.copies = kv_cache.view(-1, head_size)
        self.page_size = page_size

    @abstractmethod
    def store(self, slots: Tensor, rotated_keys: Tensor, values: Tensor) -> None:
        """Write what the kernel reads, [N, head size] each, to page slots [N]."""

    @abstractmethod
    def keys_at(self, slots: Tensor) -> Tensor:
        """Read the rotated keys of page slots: [N, head size]."""

    @final
    def values_at(self, slots: Tensor) -> Tensor:
        """Read the values of page slots: [N, head size]."""
        return self.values[slots // self.page_size, 0, slots % self.page_size]

    @final
    def write(self, slots: Tensor, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write unrotated keys, rotated to positions, and values to page slots.

        Args:
            slots: [N].
            positions: [N].
            keys: [N, head size], which are overwritten.
            values: [N, head size].
        """
        rotate(model_rotary(), keys, positions)
        self.store(slots, keys, values)

    @final
    def move(self, moves: "MoveTensors") -> None:
        """Move the slots that compactions keep.

        In parts, since vLLM sets no memory aside for copies. Within a head sources and targets
        increase and no source is before its target, so no part overwrites a later source.
        """
        for start in range(0, len(moves.targets), _SLOTS_PER_COPY):
            part = slice(start, start + _SLOTS_PER_COPY)
            sources, targets = moves.sources[part], moves.targets[part]
            values = self.values_at(sources)
            if moves.copies is not None:
                copy_sources, copy_targets, positions = moves.copies[:, part]
                keys = self.copies[copy_sources]
                self.copies[copy_targets] = keys
                self.write(targets, positions, keys, values)
                continue
            keys = self.keys_at(sources)
            if moves.lower is not None:
                keys = rotate_by(model_rotary(), keys, -moves.lower[part])
            self.store(targets, keys, values)

    @final
    def rotate_sinks(self, sinks: "SinkTensors") -> None:
        """Rotate sinks of a layer to their new positions."""
        keys = self.copies[sinks.copies]
        self.write(sinks.slots, sinks.positions, keys, self.values_at(sinks.slots))


@final
@dataclass(frozen=True)
class MoveTensors:
    """The tensors of `Moves`."""

    sources: Tensor
    targets: Tensor
    lower: Tensor | None
    copies: Tensor | None

    @classmethod
    def from_numpy(cls, moves: Moves, device: torch.device) -> "MoveTensors":
        """Copy moves to a device."""
        return cls(
            put(moves.sources, device),
            put(moves.targets, device),
            None if moves.lower is None else put(moves.lower, device),
            None if moves.copies is None else put(moves.copies, device),
        )


@final
@dataclass(frozen=True)
class SinkTensors:
    """The tensors of `SinkMoves`."""

    copies: Tensor
    slots: Tensor
    positions: Tensor

    @classmethod
    def from_numpy(cls, sinks: SinkMoves, device: torch.device) -> "SinkTensors":
        """Copy moves of sinks to a device."""
        return cls(*(put(a, device) for a in (sinks.copies, sinks.slots, sinks.positions)))


def put(array: Integers, device: torch.device) -> Tensor:
    """Copy an array to a device, contiguous, as kernels take it to be."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)
