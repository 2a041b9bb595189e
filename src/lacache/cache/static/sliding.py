"""Layers whose attention is a window by itself: a ring of the newest tokens for every row."""

from typing import final

import torch
from torch import Tensor

from lacache.cache.static.buffer import PlainBuffer
from lacache.models.model_info import SlidingLayer


@final
class Ring:
    """Keys and values [B, H, W, D] of the last W tokens; token t is in slot t modulo W.

    Their keys keep the positions at which they came in, so their order does not matter.
    """

    def __init__(
        self, layer: SlidingLayer, rows: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.window = layer.window
        shape = (rows, layer.num_heads, layer.window)
        self.keys = PlainBuffer((*shape, layer.key_size), dtype, device)
        self.values = PlainBuffer((*shape, layer.value_size), dtype, device)

    def before(self, row: int, num_seen: int) -> tuple[Tensor, Tensor]:
        """Keys and values [1, H, N, D] that the next token may attend to, in order of the text.

        N is W - 1, or the tokens seen if they are fewer.
        """
        slots = torch.arange(max(0, num_seen - self.window + 1), num_seen) % self.window
        keys, values = (buffer.read(row, self.window) for buffer in (self.keys, self.values))
        return keys[:, :, slots], values[:, :, slots]

    def insert(self, row: int, num_seen: int, keys: Tensor, values: Tensor) -> None:
        """Add new keys and values [1, H, Q, D] of one row, over the oldest."""
        num_new = keys.shape[2]
        kept = torch.arange(max(0, num_new - self.window), num_new)
        for buffer, states in ((self.keys, keys), (self.values, values)):
            stored = buffer.read(row, self.window)
            stored[:, :, (num_seen + kept) % self.window] = states[:, :, kept]

    def fork_row(self, row: int, target: int) -> None:
        """Copy one row to another."""
        for buffer in (self.keys, self.values):
            buffer.fork_row(row, target, self.window)
