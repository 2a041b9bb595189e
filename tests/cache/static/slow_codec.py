"""Keys and values in fewer bits, number by number in float64, by the definition of the format."""

import math

import torch
from torch import Tensor

from lacache.cache.codecs import Codec, HadamardCodec, Stored


def slow_block(size: int) -> int:
    """Largest power of two up to 32 that divides the size."""
    return max(block for block in (1, 2, 4, 8, 16, 32) if size % block == 0)


def slow_group(size: int, bits: int) -> int:
    """Numbers that share a scale."""
    return slow_block(size) if bits == 4 and slow_block(size) >= 16 else size


def slow_matrix(size: int) -> Tensor:
    """Transform [D, D] of a whole vector: in each block, 1 or -1 by the common bits of indices."""
    block = slow_block(size)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size):
        for j in range(size):
            if i // block == j // block:
                sign = (-1) ** ((i % block) & (j % block)).bit_count()
                matrix[i, j] = sign / math.sqrt(block)
    return matrix


def slow_integers(packed: Tensor, bits: int) -> Tensor:
    """Return the stored integers [..., D] in float64."""
    if bits == 8:
        return packed.double()
    low = torch.tensor([byte % 16 for byte in packed.flatten().tolist()]).view(packed.shape)
    high = torch.tensor([byte // 16 for byte in packed.flatten().tolist()]).view(packed.shape)
    return torch.cat([low, high], dim=-1).double() - 8


def slow_scales(scales: Tensor, size: int) -> Tensor:
    """Return the scale of each number [..., D] in float64."""
    return scales.double().repeat_interleave(size // scales.shape[-1], dim=-1)


class SlowCodec(Codec):
    """Each number of the transformed vector made the nearest that can be stored, kept in float64.

    It takes its scales from the codec that it checks, since a float's last bit decides between two.
    """

    def __init__(self, fast: HadamardCodec) -> None:
        self.fast = fast

    def parts(self, size: int) -> tuple[tuple[torch.dtype, int], ...]:
        return ((torch.float64, size),)

    def encode(self, states: Tensor) -> Stored:
        size = states.shape[-1]
        center = 0.0 if self.fast.center is None else self.fast.center.double()
        transformed = (states.double() - center) @ slow_matrix(size)
        packed, scales = self.fast.encode(states)
        step = slow_scales(scales, size)
        end = 2 ** (self.fast.bits - 1)
        can_be = torch.arange(-end, end, dtype=torch.float64)
        distance, nearest = (can_be * step[..., None] - transformed[..., None]).abs().min(dim=-1)
        slow = can_be[nearest] * step
        # Half-way between two numbers the last bit of a processor decides, and either is right.
        fast = slow_integers(packed, self.fast.bits) * step
        is_as_near = (fast - transformed).abs() <= distance * (1 + 1e-4) + 1e-6 * transformed.abs()
        slow = torch.where(is_as_near, fast, slow) @ slow_matrix(size) + center
        # Decoded alike up to the last bits, so that these decide nothing in later layers.
        decoded = self.fast.decode((packed, scales)).double()
        largest = (slow.abs() + abs(center)).amax(dim=-1, keepdim=True)
        return (torch.where((decoded - slow).abs() <= 1e-6 * largest, decoded, slow),)

    def decode(self, stored: Stored) -> Tensor:
        return stored[0].to(self.fast.dtype)

    def decode_wide(self, stored: Stored) -> Tensor:
        return stored[0].float()
