"""A matrix of 4 to 8 bits a number: integers in groups of 16 or 32, each with a scale."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor
from torch.nn.functional import pad

TENSORS = ("low", "high", "scales", "factors", "offsets", "offset_factors")
"""Names of the tensors of a packed weight, some of which it may not have."""

ROWS = 16
"""Rows that lie side by side."""
_LOW_BITS = 4


@final
@dataclass(frozen=True)
class Groups:
    """Integers in groups with a scale, before they are laid out for products.

    A number is (quant - zero) * scale, or quant * scale + offset. Where there are factors, a
    scale is one number for 256 columns times a factor for each group; offsets likewise.

    Args:
        quants: uint8 [O, I], below 2 ** bits.
        bits: 4, 5, 6 or 8.
        zero: the integer that stands for 0; 0 where there are offsets.
        scales: float16 [O, I / 16, I / 32 or I / 256].
        factors: of the scales, int8 [O, I / 16 or I / 32], or None.
        offsets: float16, as many as scales, or None.
        offset_factors: as many as factors, or None.
    """

    quants: Tensor
    bits: int
    zero: int
    scales: Tensor
    factors: Tensor | None = None
    offsets: Tensor | None = None
    offset_factors: Tensor | None = None


@final
@dataclass(frozen=True)
class PackedWeight:
    """A matrix [O, I] of integers in groups, laid out for the kernel.

    16 rows lie side by side, R blocks of them; missing rows are 0. Bits lie 4 columns apart: bit
    b * i of byte [r, k, row, j] begins column (32 / b) * k + 4 * i + j, for planes of b bits.

    Args:
        low: the 4 lowest bits, uint8 [R, I / 8, 16, 4].
        high: the bits above, uint8 [R, I * b / 32, 16, 4], or None.
        scales: bits of float16 in int16, which casts of a model leave alone, [R, N, 16].
        factors: of the scales, for each group: int8 [R, I / 16 or I / 32, 16], or None.
        offsets: likewise bits of float16, as many as scales, or None.
        offset_factors: as many as factors, or None.
        zero: the integer that stands for 0.
        out_features: O.
    """

    low: Tensor
    high: Tensor | None
    scales: Tensor
    factors: Tensor | None
    offsets: Tensor | None
    offset_factors: Tensor | None
    zero: int
    out_features: int

    @classmethod
    def pack(cls, groups: Groups) -> Self:
        """Lay integers in groups out for products."""
        high_bits = groups.bits - _LOW_BITS
        return cls(
            low=_plane(groups.quants & 15, _LOW_BITS),
            high=_plane(groups.quants >> _LOW_BITS, high_bits) if high_bits else None,
            scales=_blocks(groups.scales.view(torch.int16)),
            factors=None if groups.factors is None else _blocks(groups.factors),
            offsets=None if groups.offsets is None else _blocks(groups.offsets.view(torch.int16)),
            offset_factors=(
                None if groups.offset_factors is None else _blocks(groups.offset_factors)
            ),
            zero=groups.zero,
            out_features=len(groups.quants),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Join weights by their rows. All but the last have a multiple of 16."""
        tensors = [part.tensors() for part in parts]
        joined = {name: torch.cat([part[name] for part in tensors]) for name in tensors[0]}
        out_features = sum(part.out_features for part in parts)
        return cls.from_tensors(joined, {"zero": parts[0].zero, "out_features": out_features})

    @property
    def in_features(self) -> int:
        """Number of columns, I."""
        return self.low.shape[1] * 8

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, those that there are."""
        named = {name: getattr(self, name) for name in TENSORS}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def metadata(self) -> dict[str, int]:
        """Return what `from_tensors` needs beside the tensors."""
        return {"zero": self.zero, "out_features": self.out_features}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, int]) -> Self:
        """Rebuild a weight from `tensors()` and `metadata()`."""
        missing = dict.fromkeys(set(TENSORS) - tensors.keys())
        return cls(**tensors, **missing, **metadata)  # type: ignore[arg-type]

    def unpack(self, first: int = 0, last: int | None = None) -> Tensor:
        """Return rows `first` to `last` as numbers, float32 [N, I]."""
        last = self.out_features if last is None else last
        blocks = slice(first // ROWS, -(-last // ROWS))
        numbers = self._unpack_blocks(*(part[blocks] for part in self._parts()))
        start = first - blocks.start * ROWS
        return numbers.flatten(0, 1)[start : start + last - first]

    def unpack_at(self, outputs: Tensor) -> Tensor:
        """Return the rows of outputs [N] as numbers, float32 [N, I]."""
        block, row = outputs // ROWS, outputs % ROWS
        # Each row becomes a block of one row.
        parts = [part[block, :, row][:, :, None] for part in self._parts()]
        return self._unpack_blocks(*parts)[:, 0]

    def _parts(self) -> list[Tensor]:
        return list(self.tensors().values())

    def _unpack_blocks(self, *parts: Tensor) -> Tensor:
        """Return blocks [R, ..., rows] of all tensors as numbers [R, rows, I]."""
        part = dict(zip(self.tensors(), parts, strict=True))
        quants = _unplane(part["low"], _LOW_BITS)
        if self.high is not None:
            bits = 32 * self.high.shape[1] // self.in_features
            quants |= _unplane(part["high"], bits) << _LOW_BITS
        scales = _products(part["scales"], part.get("factors"))
        grouped = torch.unflatten(quants, -1, (scales.shape[-1], -1)).float()
        if "offsets" in part:
            offsets = _products(part["offsets"], part.get("offset_factors"))
            return (grouped * scales[..., None] + offsets[..., None]).flatten(-2)
        return ((grouped - self.zero) * scales[..., None]).flatten(-2)


def _blocks(numbers: Tensor) -> Tensor:
    """Put [O, N] into blocks of 16 rows: [R, N, 16]."""
    padded = pad(numbers, (0, 0, 0, -len(numbers) % ROWS))
    return torch.unflatten(padded, 0, (-1, ROWS)).transpose(1, 2).contiguous()


def _plane(numbers: Tensor, bits: int) -> Tensor:
    """Pack [O, I] below 2 ** bits into bytes: [R, I * bits / 32, 16, 4]."""
    padded = pad(numbers, (0, 0, 0, -len(numbers) % ROWS))
    parts = torch.unflatten(torch.unflatten(padded, 0, (-1, ROWS)), -1, (-1, 8 // bits, 4))
    plane = torch.zeros_like(parts[..., 0, :])
    for number in range(8 // bits):
        plane |= parts[..., number, :] << bits * number
    return plane.transpose(1, 2).contiguous()


def _unplane(plane: Tensor, bits: int) -> Tensor:
    """Unpack [R, N, rows, 4] into numbers below 2 ** bits: [R, rows, I]."""
    parts = [plane >> bits * number & (1 << bits) - 1 for number in range(8 // bits)]
    return torch.stack(parts, dim=-2).transpose(1, 2).flatten(-3)


def _products(numbers: Tensor, factors: Tensor | None) -> Tensor:
    """Return scales or offsets [R, N, rows] for each group: [R, rows, groups]."""
    wide = numbers.view(torch.float16).float()
    if factors is not None:
        wide = wide.repeat_interleave(factors.shape[1] // numbers.shape[1], dim=1) * factors
    return wide.transpose(1, 2)
