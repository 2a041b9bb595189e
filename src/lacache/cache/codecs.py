"""Storage formats of keys and values: the model's own type, or fewer bits (docs/adr/0023)."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lacache.common.validation import KV_DTYPES
from lacache.errors import ConfigError

Stored = tuple[Tensor, ...]
"""Vectors in the format of a codec: tensors [..., W], one for each of its parts."""

KV_FORMAT = "hadamard"
"""Name of the format of fewer bits in snapshots; a change of the format needs another."""

_BLOCK = 32
"""Most numbers of a vector that are transformed together."""
_LEAST_GROUP = 16
"""Smaller blocks share one scale, whose bytes would weigh too much otherwise."""


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

    def decode_wide(self, stored: Stored) -> Tensor:
        """Return keys or values [..., D] so precise that, encoded again, they are stored the same.

        Keys that are rotated and stored again are read so.
        """
        return self.decode(stored)

    def constants(self) -> tuple[Tensor, ...]:
        """Return the tensors that decoding reads besides what is stored."""
        return ()

    def vector_bytes(self, size: int) -> int:
        """Return the bytes of one vector of `size` numbers."""
        return sum(dtype.itemsize * width for dtype, width in self.parts(size))


@final
@dataclass(frozen=True)
class PlainCodec(Codec):
    """The model's own type."""

    dtype: torch.dtype

    def parts(self, size: int) -> tuple[tuple[torch.dtype, int], ...]:
        """Return the one tensor: the numbers as they are."""
        return ((self.dtype, size),)

    def encode(self, states: Tensor) -> Stored:
        """Return the states themselves."""
        return (states,)

    def decode(self, stored: Stored) -> Tensor:
        """Return the stored tensor itself."""
        return stored[0]


@final
class HadamardCodec(Codec):
    """Small integers times scales, after a Hadamard transform.

    A normalised transform of each block of 32 numbers spreads outliers over the block (QuaRot,
    arXiv:2404.00456). Blocks are shorter where 32 does not divide the vector: the largest power of
    two that does. Transformed numbers are stored as integers times a scale:

    | bits | integers | numbers of one scale |
    |---|---|---|
    | 8 | -128 .. 127 | the vector |
    | 4 | -8 .. 7 | a block, or the vector where blocks have fewer than 16 numbers |

    The scale maps the number farthest from 0 to the least integer, so it is negative where that
    number is positive. Transformed numbers are off by at most half a step, or by one and a half at
    the other end. Numbers beyond 6e37 overflow.

    Decoding sums integers exactly, so it gives the same bits whatever is decoded together.

    Args:
        bits: 8 or 4.
        dtype: the model's own type.
        device: where vectors are decoded.
        center: subtracted from vectors before and added after, float32, broadcast to [..., D].
    """

    def __init__(
        self,
        bits: int,
        dtype: torch.dtype,
        device: torch.device | None = None,
        center: Tensor | None = None,
    ) -> None:
        self.bits = bits
        self.dtype = dtype
        self.center = center
        self._signs = hadamard(_BLOCK).to(device)

    def parts(self, size: int) -> tuple[tuple[torch.dtype, int], ...]:
        """Return integers, as int8 or two in a byte, and scales in bfloat16.

        Raises:
            ConfigError: two numbers in a byte of vectors of odd size.
        """
        scales = torch.bfloat16, size // self._group(size)
        if self.bits == 8:
            return (torch.int8, size), scales
        if size % 2:
            raise ConfigError(
                f"kv_dtype='int4' stores two numbers in a byte, and heads of {size} numbers are "
                "odd; try kv_dtype='int8'"
            )
        return (torch.uint8, size // 2), scales

    def encode(self, states: Tensor) -> Stored:
        """Return integers and scales."""
        size = states.shape[-1]
        wide = states.float()
        transformed = self.transform(wide if self.center is None else wide - self.center)
        grouped = _split(transformed, self._group(size))
        most, least = grouped.amax(dim=-1, keepdim=True), grouped.amin(dim=-1, keepdim=True)
        farthest = torch.where(most > -least, most, least)
        end = 2 ** (self.bits - 1)
        # Numbers are divided by the scale as it is stored, so that its rounding costs little. It
        # is not 0, as groups that are all zero are divided by it too.
        tiny = torch.finfo(torch.float32).tiny
        scales = (farthest / -end).to(torch.bfloat16)
        scales = torch.where(scales.abs() < tiny, tiny, scales)
        integers = (grouped / scales.float()).round().clamp(-end, end - 1).flatten(-2)
        if self.bits == 8:
            return integers.to(torch.int8), scales[..., 0]
        low, high = (integers + end).to(torch.uint8).chunk(2, dim=-1)
        return low | (high << 4), scales[..., 0]

    def decode(self, stored: Stored) -> Tensor:
        """Return integers times scales, transformed back, in the model's own type."""
        return self.decode_wide(stored).to(self.dtype)

    def decode_wide(self, stored: Stored) -> Tensor:
        """Return integers times scales, transformed back, in float32."""
        packed, scales = stored
        if self.bits == 8:
            integers = packed.float()
        else:
            integers = torch.cat((packed & 15, packed >> 4), dim=-1).float() - 8
        size = integers.shape[-1]
        block = _block(size)
        # Sums of at most 32 integers of 8 bits are exact in float32, but not in lower precision.
        with torch.autocast(integers.device.type, enabled=False):
            sums = integers.reshape(-1, block) @ self._signs[:block, :block]
        steps = (scales.float() / math.sqrt(block))[..., None]
        states: Tensor = (_split(sums.view(integers.shape), self._group(size)) * steps).flatten(-2)
        return states if self.center is None else states + self.center

    def constants(self) -> tuple[Tensor, ...]:
        """Return the signs of the transform, and the center."""
        return (self._signs,) if self.center is None else (self._signs, self.center)

    def transform(self, states: Tensor) -> Tensor:
        """Return the transform of each block of states [..., D], in float32; its own inverse."""
        block = _block(states.shape[-1])
        # In float64 sums hardly depend on their order, and so not on what is encoded together.
        signs = self._signs[:block, :block].double()
        sums: Tensor = states.double().reshape(-1, block) @ signs
        return (sums / math.sqrt(block)).float().view(states.shape)

    def _group(self, size: int) -> int:
        """Return how many numbers of a vector share a scale."""
        block = _block(size)
        return block if self.bits == 4 and block >= _LEAST_GROUP else size


def hadamard(size: int) -> Tensor:
    """Return the Hadamard matrix [size, size] of a power of two: 1 or -1, symmetric."""
    signs = torch.ones(1, 1)
    while len(signs) < size:
        signs = torch.cat((torch.cat((signs, signs)), torch.cat((signs, -signs))), dim=1)
    return signs


def find_codecs(
    kv_dtype: str | None,
    dtype: torch.dtype,
    device: torch.device | None = None,
    center: Tensor | None = None,
) -> tuple[Codec, Codec]:
    """Return the codecs of keys and of values.

    Args:
        kv_dtype: a name of `KV_DTYPES`, or None for the model's own type.
        dtype: the model's own type.
        device: where the codecs are used; None is the CPU.
        center: what keys have in common, float32 [H, D]; see `find_key_center`.
    """
    if kv_dtype is None:
        return PlainCodec(dtype), PlainCodec(dtype)
    bits = KV_DTYPES[kv_dtype]
    around = None if center is None else center[:, None].to(device)
    return HadamardCodec(bits, dtype, device, around), HadamardCodec(bits, dtype, device)


def _split(states: Tensor, width: int) -> Tensor:
    """Return states [..., D] as groups [..., D / width, width]."""
    return states.view(*states.shape[:-1], states.shape[-1] // width, width)


def _block(size: int) -> int:
    """Return how many numbers of a vector are transformed together: a power of two."""
    return min(size & -size, _BLOCK)
