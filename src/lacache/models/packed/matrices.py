"""Find the matrices of a GGUF file in the model that transformers makes of it."""

from functools import cached_property
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from lacache.models.packed.blocks import KINDS, read_blocks
from lacache.models.packed.weight import ROWS, PackedWeight

_BLOCK = 2**20


@final
class GgufMatrices:
    """The matrices of a GGUF file that can stay as they are.

    transformers renames matrices and changes the order of rows as each architecture needs it. So
    a weight is searched by the content of its rows, which works for every architecture.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        self._unused = [
            _Matrix(tensor.tensor_type.name, torch.from_numpy(tensor.data))
            for tensor in GGUFReader(path, "c").tensors
            if tensor.tensor_type.name in KINDS and len(tensor.shape) == 2
        ]

    def find(self, weight: Tensor) -> PackedWeight | None:
        """Pack the matrix that has the rows of a weight [O, I] in bfloat16, in any order.

        Returns:
            The packed weight, which unpacks to exactly `weight`; None if there is no such matrix.
        """
        hashes = _hashes(weight).tolist()
        for matrix in self._unused:
            if matrix.shape == weight.shape and matrix.place_of.keys() >= set(hashes):
                order = torch.tensor([matrix.place_of[number] for number in hashes])
                self._unused.remove(matrix)
                return PackedWeight.concatenate([matrix.pack(some) for some in matrix.split(order)])
        return None


@final
class _Matrix:
    def __init__(self, kind: str, content: Tensor) -> None:
        self.kind = kind
        self.content = content
        columns = read_blocks(kind, content[:1]).quants.shape[1]
        self.shape = (len(content), columns)

    def split(self, order: Tensor) -> tuple[Tensor, ...]:
        """Split indices of its rows [N] into parts that take little memory while packed."""
        return torch.split(order, ROWS * max(1, _BLOCK // (ROWS * self.shape[1])))

    def pack(self, order: Tensor) -> PackedWeight:
        """Return a packed weight of some of its rows, given their indices [N]."""
        return PackedWeight.pack(read_blocks(self.kind, self.content[order]))

    @cached_property
    def place_of(self) -> dict[int, int]:
        """Each row's index by its hash."""
        hashes: list[int] = []
        for some in self.split(torch.arange(self.shape[0])):
            hashes += _hashes(self.pack(some).unpack().bfloat16()).tolist()
        return {number: row for row, number in enumerate(hashes)}


def _hashes(weight: Tensor) -> Tensor:
    """Hash the rows of a weight [O, I] in bfloat16 to 64 bits each, int64 [O]."""
    generator = torch.Generator().manual_seed(0)
    limit = 2**63 - 1
    factors = torch.randint(-limit, limit, (weight.shape[1],), generator=generator)
    step = max(1, _BLOCK // weight.shape[1])
    hashes = torch.empty(len(weight), dtype=torch.int64)
    # Results that lie between large blocks of memory would keep these from being used again.
    for place, part in zip(
        torch.split(hashes, step),
        torch.split(weight.contiguous().view(torch.int16), step),
        strict=True,
    ):
        torch.sum(part.long() * factors, -1, out=place)
    return hashes
