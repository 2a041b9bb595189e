"""The blocks of GGUF files that have 4 bits and more, as integers in groups.

The layouts are those of ggml-quants.h of llama.cpp. A block has 32 columns, or 256 with a factor
for each group of 16 or 32.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lacache.models.packed.weight import Groups

_BLOCK, _SUPER = 32, 256


def read_blocks(kind: str, content: Tensor) -> Groups:
    """Split the blocks of a matrix into integers and scales, none of them rounded.

    Args:
        kind: the type's name in GGUF files, one of `KINDS`.
        content: uint8 [O, bytes of a row].
    """
    size = BLOCK_BYTES[kind]
    return _READERS[kind](torch.unflatten(content, -1, (-1, size)))


def _half(content: Tensor) -> Tensor:
    """Read one float16 from two bytes [..., 2]: [...]."""
    return content.contiguous().view(torch.float16)[..., 0]


def _nibbles(content: Tensor, length: int) -> Tensor:
    """Split bytes [..., N] into lower and upper halves, alternating every `length` bytes."""
    parts = torch.unflatten(content, -1, (-1, 1, length))
    return torch.cat([parts & 15, parts >> 4], dim=-2).flatten(-3)


def _bits(content: Tensor, width: int, length: int) -> Tensor:
    """Split bytes [..., N] into numbers of `width` bits, lowest first, for each `length` bytes."""
    parts = torch.unflatten(content, -1, (-1, 1, length))
    mask = (1 << width) - 1
    return torch.cat([parts >> s & mask for s in range(0, 8, width)], dim=-2).flatten(-3)


def _fifth_bits(content: Tensor) -> Tensor:
    """Read bits [..., 4] in order, 16 times their value: [..., 32]."""
    shifts = torch.arange(8, dtype=torch.uint8)
    return (content[..., None] >> shifts & 1).flatten(-2) << 4


def _simple(bits: int, *, has_offset: bool) -> Callable[[Tensor], Groups]:
    """Return the reader of Q4_0, Q4_1, Q5_0 and Q5_1: scale, offset, fifth bits, nibbles."""

    def read(blocks: Tensor) -> Groups:
        place = 4 if has_offset else 2
        quants = _nibbles(blocks[..., -16:], 16)
        if bits == 5:
            quants = quants | _fifth_bits(blocks[..., place : place + 4])
        offsets = _half(blocks[..., 2:4]) if has_offset else None
        zero = 0 if has_offset else 1 << bits - 1
        return Groups(quants.flatten(1), bits, zero, _half(blocks[..., :2]), offsets=offsets)

    return read


def _q8_0(blocks: Tensor) -> Groups:
    # From signed to unsigned.
    return Groups((blocks[..., 2:] ^ 128).flatten(1), 8, 128, _half(blocks[..., :2]))


def _six_bit_factors(content: Tensor) -> tuple[Tensor, Tensor]:
    """Unpack 8 factors of scales and 8 of offsets from 12 bytes."""
    first, second, both = torch.unflatten(content, -1, (3, 4)).unbind(-2)
    scales = torch.cat([first & 63, both & 15 | first >> 2 & 48], dim=-1)
    offsets = torch.cat([second & 63, both >> 4 | second >> 2 & 48], dim=-1)
    return scales.view(torch.int8), offsets.view(torch.int8)


def _q4_or_5_k(bits: int) -> Callable[[Tensor], Groups]:
    def read(blocks: Tensor) -> Groups:
        factors, offset_factors = _six_bit_factors(blocks[..., 4:16])
        quants = _nibbles(blocks[..., -128:], 32)
        if bits == 5:
            quants = quants | _bits(blocks[..., 16:48], 1, 32) << 4
        return Groups(
            quants.flatten(1),
            bits,
            0,
            _half(blocks[..., :2]),
            factors.flatten(1),
            -_half(blocks[..., 2:4]),
            offset_factors.flatten(1),
        )

    return read


def _q6_k(blocks: Tensor) -> Groups:
    quants = _nibbles(blocks[..., :128], 64) | _bits(blocks[..., 128:192], 2, 32) << 4
    factors = blocks[..., 192:208].view(torch.int8)
    return Groups(quants.flatten(1), 6, 32, _half(blocks[..., 208:]), factors.flatten(1))


_READERS: dict[str, Callable[[Tensor], Groups]] = {
    "Q4_0": _simple(4, has_offset=False),
    "Q4_1": _simple(4, has_offset=True),
    "Q5_0": _simple(5, has_offset=False),
    "Q5_1": _simple(5, has_offset=True),
    "Q8_0": _q8_0,
    "Q4_K": _q4_or_5_k(4),
    "Q5_K": _q4_or_5_k(5),
    "Q6_K": _q6_k,
}
BLOCK_BYTES = {
    **{"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34},
    **{"Q4_K": 144, "Q5_K": 176, "Q6_K": 210},
}
KINDS = tuple(_READERS)
"""The types that stay as they are. The others, of fewer bits, are unpacked."""
