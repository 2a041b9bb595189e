"""Keys or values of the transformers cache in the format of a codec."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from lacache.cache.codecs import Codec, Stored, find_codecs
from lacache.models.model_info import ModelInfo


@final
@dataclass(frozen=True)
class EncodedStates:
    """Keys or values [B, H, N, D] in the format of a codec.

    Every change returns new states and leaves the tensors as they are. Only `encode` and `append`
    encode, and only what they are given: selected states stay bit for bit what they were.

    Args:
        codec: the storage format.
        stored: the tensors of the codec, each [B, H, N, W].
    """

    codec: Codec
    stored: Stored

    @classmethod
    def encode(cls, states: Tensor, codec: Codec) -> "EncodedStates":
        """Return states [B, H, N, D] in the format of a codec."""
        return cls(codec, codec.encode(states))

    def decode(self) -> Tensor:
        """Return the states [B, H, N, D] in the model's own type."""
        return self.codec.decode(self.stored)

    def decode_wide(self) -> Tensor:
        """Return the states so precise that, encoded again, they are stored the same."""
        return self.codec.decode_wide(self.stored)

    def map(self, change: Callable[[Tensor], Tensor]) -> "EncodedStates":
        """Return the states with every stored tensor [B, H, N, W] changed."""
        return replace(self, stored=tuple(map(change, self.stored)))

    def select(self, slots: Tensor | None) -> "EncodedStates":
        """Return the states in `slots` [K], in that order; all of them for None."""
        if slots is None:
            return self
        return self.map(lambda stored: stored.index_select(-2, slots.to(stored.device)))

    def between(self, start: int, stop: int) -> "EncodedStates":
        """Return the states in the slots from `start` to `stop`."""
        return self.map(lambda stored: stored[:, :, start:stop])

    def append(self, other: "EncodedStates") -> "EncodedStates":
        """Return the states with those of the same format behind them."""
        pairs = zip(self.stored, other.stored, strict=True)
        return replace(self, stored=tuple(torch.cat(pair, dim=-2) for pair in pairs))

    @property
    def device(self) -> torch.device:
        """The device that the states are on."""
        return self.stored[0].device

    @property
    def num_slots(self) -> int:
        """Number of slots N."""
        return self.stored[0].shape[-2]

    @property
    def num_sequences(self) -> int:
        """Sequences B of the batch."""
        return self.stored[0].shape[0]

    @property
    def num_bytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(stored.numel() * stored.element_size() for stored in self.stored)


def bytes_per_token(info: ModelInfo, kv_dtype: str | None) -> int:
    """Return the stored bytes of one token of one sequence, over all growing layers.

    Args:
        info: the model's layers.
        kv_dtype: a name of `KV_DTYPES`; None for the model's own type.
    """
    keys, values = find_codecs(kv_dtype, info.dtype)
    return sum(
        layer.num_heads
        * (keys.vector_bytes(layer.key_size) + values.vector_bytes(layer.value_size))
        for layer in info.growing
    )
