"""How keys and values are stored: in the model's own type, or in fewer bits."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lacache.common import validation

KV_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in validation.KV_DTYPES}
"""By name, the types besides the model's own that keys and values can be stored in."""

Stored = tuple[Tensor, ...]
"""Vectors in the format of a codec: tensors [..., W], one for each of its parts."""


class Codec(ABC):
    """A format of keys or values."""

    @abstractmethod
    def parts(self, size: int) -> tuple[tuple[torch.dtype, int], ...]:
        """Return type and width W of each tensor that stores vectors of `size` numbers."""

    @abstractmethod
    def encode(self, states: Tensor) -> Stored:
        """Return keys or values [..., D] in this format."""

    @abstractmethod
    def decode(self, stored: Stored) -> Tensor:
        """Return keys or values [..., D] in the model's own type."""

    def vector_bytes(self, size: int) -> int:
        """Return the bytes of one vector of `size` numbers."""
        return sum(dtype.itemsize * width for dtype, width in self.parts(size))


@final
@dataclass(frozen=True)
class PlainCodec(Codec):
    """The model's own type."""

    dtype: torch.dtype

    def parts(self, size: int) -> tuple[tuple[torch.dtype, int], ...]:
        """Return one tensor."""
        return ((self.dtype, size),)

    def encode(self, states: Tensor) -> Stored:
        """Return the states themselves."""
        return (states,)

    def decode(self, stored: Stored) -> Tensor:
        """Return the stored tensor itself."""
        return stored[0]


@final
@dataclass(frozen=True)
class EightBitCodec(Codec):
    """Eight bits for each number, with a scale for every token and head.

    The largest number of a token and head becomes the largest that eight bits hold. A number is
    off by at most half a step: as int8 1/254 of the largest, as float8_e4m3fn 1/16 of itself (or
    1/458,752 of the largest, if that is more). Decoding rounds it once more, to `dtype`.

    Args:
        stored_in: a value of `KV_DTYPES`.
        dtype: the model's own type.
    """

    stored_in: torch.dtype
    dtype: torch.dtype

    def parts(self, size: int) -> tuple[tuple[torch.dtype, int], ...]:
        """Return the eight bits of each number, as int8, and the scale."""
        # As int8 either way, since some versions of torch cannot index float8.
        return (torch.int8, size), (self.scale_dtype, 1)

    @property
    def scale_dtype(self) -> torch.dtype:
        """The type of the scales: the model's own, so that decoding rounds once.

        Any number of eight bits fits into it. For float16 it is float32, as float16 is too coarse
        for the scales of small states.
        """
        return torch.float32 if self.dtype is torch.float16 else self.dtype

    def encode(self, states: Tensor) -> Stored:
        """Return states and scales."""
        is_int8 = self.stored_in is torch.int8
        largest = 127.0 if is_int8 else torch.finfo(self.stored_in).max
        scales = states.abs().amax(dim=-1, keepdim=True).float() / largest
        # Above 0, as states that are all zero are divided by it too. By the scale as it is stored,
        # so that its rounding costs nothing; it is too small to push a number above the largest.
        scales = scales.clamp_min(torch.finfo(torch.float32).tiny).to(self.scale_dtype)
        scaled = states.float() / scales.float()
        if is_int8:
            scaled = scaled.round()
        return scaled.to(self.stored_in).view(torch.int8), scales

    def decode(self, stored: Stored) -> Tensor:
        """Return states times scales."""
        states, scales = stored
        return (states.view(self.stored_in).to(scales.dtype) * scales).to(self.dtype)


def find_codec(kv_dtype: str | None, dtype: torch.dtype) -> Codec:
    """Return the codec of a name of `KV_DTYPES`, or of the model's own type for None."""
    return PlainCodec(dtype) if kv_dtype is None else EightBitCodec(KV_DTYPES[kv_dtype], dtype)
