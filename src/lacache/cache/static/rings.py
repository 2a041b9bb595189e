"""Rings of keys and values, for sliding-window layers."""

from typing import final

import torch
from torch import Tensor

from lacache.cache.codecs import PlainCodec
from lacache.cache.static.storage import LayerStates, fixed_buffer
from lacache.models.model_info import SlidingLayer


@final
class RingBuffer:
    """Keys and values [B, H, W, D] of the last W tokens of a sliding-window layer.

    Token t is in slot t modulo W. Keys keep their original positions, so slot order is free.
    """

    def __init__(
        self, layer: SlidingLayer, batch_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.window = layer.window
        shape = (batch_size, layer.num_heads, layer.window)
        self.keys = fixed_buffer((*shape, layer.key_size), PlainCodec(dtype), device)
        self.values = fixed_buffer((*shape, layer.value_size), PlainCodec(dtype), device)
        self.key_states, self.value_states = (
            LayerStates(buffer.storage, buffer.codec) for buffer in (self.keys, self.values)
        )
        self.first_slots = layer.window * torch.arange(
            batch_size * layer.num_heads, device=device
        ).view(batch_size, layer.num_heads)
        """In `Storage.flat`, the index of each KV head's first slot [B, H]."""

    def before(self, batch_slot: int, num_seen: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values [1, H, N, D] that the next token attends to, oldest first.

        N is W - 1, or `num_seen` if that is less.
        """
        slots = torch.arange(max(0, num_seen - self.window + 1), num_seen) % self.window
        keys, values = (b.read(batch_slot, self.window) for b in (self.keys, self.values))
        return keys[:, :, slots], values[:, :, slots]

    def insert(self, batch_slot: int, num_seen: int, keys: Tensor, values: Tensor) -> None:
        """Add new keys and values [1, H, Q, D], over the oldest."""
        num_new = keys.shape[2]
        kept = torch.arange(max(0, num_new - self.window), num_new)
        for buffer, states in ((self.keys, keys), (self.values, values)):
            stored = buffer.read(batch_slot, self.window)
            stored[:, :, (num_seen + kept) % self.window] = states[:, :, kept]

    def insert_one(self, slots: Tensor, active: Tensor, keys: Tensor, values: Tensor) -> None:
        """Add a key and a value [B, H, 1, D] to each active batch slot, at slots [B]."""
        indices = self.first_slots + slots[:, None]
        self.key_states.write(indices, active, keys)
        self.value_states.write(indices, active, values)

    def fork(self, batch_slot: int, target: int) -> None:
        """Copy one batch slot to another."""
        for buffer in (self.keys, self.values):
            buffer.fork(batch_slot, target, self.window)
