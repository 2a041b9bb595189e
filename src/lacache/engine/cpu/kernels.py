"""The operators in C++: products and attention of one token, and compactions.

`build.load_kernels` defines them.
"""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from lacache.cache.codecs import HadamardCodec
from lacache.cache.static.attention import ChunkStates, InPlaceAttention
from lacache.cache.static.compaction_ops import CompactionOps, TorchCompactionOps
from lacache.cache.static.storage import LayerStates

TYPES = (torch.float32, torch.bfloat16)
"""Types of weights, keys and values that the kernels take."""


def kernel_product(weight: Tensor, vector: Tensor) -> Tensor:
    """Multiply a weight [O, I], in int8 too, and a vector [I]; add up in float32.

    Returns:
        [O], in the vector's type.
    """
    product: Tensor = torch.ops.lacache.product(weight, vector.float())
    return product.to(vector.dtype)


@final
class KernelAttention(InPlaceAttention):
    """Attention by kernels, without caps of scores and learned sinks."""

    def attend(
        self,
        query: Tensor,
        keys: LayerStates,
        values: LayerStates,
        first_slots: Tensor,
        last_slots: Tensor,
        options: dict[str, Any],
    ) -> Tensor | None:
        """Compute the attention of one token of each sequence."""
        if not _is_plain(options):
            return None
        scaled = query.float() * _scaling(query, options)
        stored = *keys.storage.flat, *values.storage.flat
        if isinstance(keys.codec, HadamardCodec) and isinstance(values.codec, HadamardCodec):
            if values.codec.center is not None:
                return None
            # Queries are transformed in place of keys. What all keys have in common adds the same
            # to all scores of a query, which softmax ignores.
            scaled = keys.codec.transform(scaled).contiguous()
            mixed = torch.ops.lacache.attend_coded(scaled, *stored, first_slots, last_slots)
            return values.codec.transform(mixed).to(query.dtype)
        if keys.codec.parts(1)[0][0] not in TYPES:
            return None
        output: Tensor = torch.ops.lacache.attend(
            scaled.contiguous(), *stored, first_slots, last_slots
        )
        return output.to(query.dtype)

    def attend_chunk(
        self, query: Tensor, states: ChunkStates, options: dict[str, Any]
    ) -> Tensor | None:
        """Compute the attention of one sequence's chunk, in float32."""
        stored = states.keys, states.values
        types = {tensor.dtype for tensor in (query, *states.new, *stored)}
        if not _is_plain(options) or len(types) > 1 or query.dtype not in TYPES:
            return None
        output: Tensor = torch.ops.lacache.attend_chunk(
            query,
            *stored,
            states.first_slots,
            states.num_stored,
            *states.new,
            states.moved_sinks,
            states.visible,
            _scaling(query, options),
        )
        return output


def _is_plain(options: dict[str, Any]) -> bool:
    return options.get("softcap") is None and options.get("s_aux") is None


def _scaling(query: Tensor, options: dict[str, Any]) -> float:
    scaling: float = options.get("scaling") or query.shape[-1] ** -0.5
    return scaling


@final
class KernelCompactionOps(CompactionOps):
    """The operations of a compaction by kernels, which read and write each number once."""

    def __init__(self) -> None:
        self._torch = TorchCompactionOps()

    def gather(self, stored: Tensor, slots: Tensor, start: int) -> None:
        """Move the surviving slots in place, without a copy."""
        torch.ops.lacache.gather(stored, slots, start)

    def move(self, stored: Tensor, moves: Tensor) -> None:
        """Move runs of slots in place, without a copy."""
        torch.ops.lacache.move(stored, moves)

    def move_few(self, stored: Tensor, first: Tensor, patterns: Tensor, moves: Tensor) -> None:
        """Move the slots in place, without a copy."""
        torch.ops.lacache.move_few(stored, first, patterns, moves)

    def store_left(
        self,
        stored: Tensor,
        first: Tensor,
        moved: Sequence[Tensor],
        added: Sequence[Tensor],
        new: Tensor,
    ) -> None:
        """Copy all tokens of all heads in one call."""
        torch.ops.lacache.store_left(stored, first, moved, added, new)

    def gather_slots(
        self, stored: Tensor, first: Tensor, patterns: Tensor, sources: Tensor, starts: Tensor
    ) -> None:
        """Move the slots in place, without a copy."""
        torch.ops.lacache.gather_slots(stored, first, patterns, sources, starts)

    def rotate_slots(
        self,
        stored: Tensor,
        first: Tensor,
        patterns: Tensor,
        copies: tuple[Tensor, Tensor],
        ranges: Tensor,
        tables: tuple[Tensor, Tensor],
        partners: Tensor,
    ) -> None:
        """Rotate in one pass; other types than the kernel takes use torch's operators."""
        if stored.dtype in TYPES:
            rest = ranges, *tables, partners
            torch.ops.lacache.rotate_slots(stored, first, patterns, *copies, *rest)
        else:
            self._torch.rotate_slots(stored, first, patterns, copies, ranges, tables, partners)

    def rotate(self, keys: Tensor, cosines: Tensor, sines: Tensor, partners: Tensor) -> Tensor:
        """Rotate in one pass; other types than the kernel takes use torch's operators."""
        if keys.dtype not in TYPES:
            return self._torch.rotate(keys, cosines, sines, partners)
        rotated: Tensor = torch.ops.lacache.rotate(keys, cosines, sines, partners)
        return rotated
