"""Layers whose attention is a window by itself: a ring of the newest tokens for every row."""

from typing import final

import torch
from torch import Tensor

from lacache.cache.facts import SlidingLayer
from lacache.cache.static.buffer import PlainBuffer


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

    def insert(
        self, row: int, num_seen: int, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Add new keys and values [1, H, Q, D] of one row.

        Returns:
            What the new tokens may attend to, in the order of the text, each [1, H, N + Q, D]
            with N the last W - 1 tokens before them, or all if there were fewer.
        """
        before = torch.arange(max(0, num_seen - self.window + 1), num_seen) % self.window
        num_new = keys.shape[2]
        kept = torch.arange(max(0, num_new - self.window), num_new)
        seen = []
        for buffer, states in ((self.keys, keys), (self.values, values)):
            (stored,) = buffer.tensors()
            seen.append(torch.cat([stored[row : row + 1, :, before], states], dim=2))
            stored[row][:, (num_seen + kept) % self.window] = states[0, :, kept]
        return seen[0], seen[1]

    def fork_row(self, row: int, target: int) -> None:
        """Copy one row to another."""
        for buffer in (self.keys, self.values):
            buffer.fork_row(row, target, self.window)
