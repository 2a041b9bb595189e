"""Attention over the slots of a ladder: what the CPU and CUDA backends share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.attention.backend import CommonAttentionMetadata

from lacache.integrations.vllm.process import PROCESS
from lacache.integrations.vllm.rotary import model_rotary, rotate, validate_capacity
from lacache.integrations.vllm.sub_chunks import (
    Integers,
    Moves,
    ScheduleArrays,
    SubChunk,
    split_step,
)

_SLOTS_PER_COPY = 16_384


@final
@dataclass(frozen=True)
class PageSlots:
    """Page slots as tensors of indices: [...], each int64."""

    flat: Tensor
    page: Tensor
    offset: Tensor

    @classmethod
    def from_numpy(cls, slots: Integers, page_size: int, device: torch.device) -> "PageSlots":
        """Copy page slots to a device."""
        flat = torch.from_numpy(slots).to(device, non_blocking=True)
        return cls(flat, flat // page_size, flat % page_size)

    def __getitem__(self, index: Any) -> "PageSlots":
        return PageSlots(self.flat[index], self.page[index], self.offset[index])


@final
@dataclass(frozen=True)
class SlotMoves:
    """The tensors of `Moves`."""

    sources: PageSlots
    targets: PageSlots
    positions: Tensor

    @classmethod
    def from_numpy(cls, moves: Moves, page_size: int, device: torch.device) -> "SlotMoves":
        """Copy moves to a device."""
        return cls(
            PageSlots.from_numpy(moves.sources, page_size, device),
            PageSlots.from_numpy(moves.targets, page_size, device),
            torch.from_numpy(moves.positions).to(device, non_blocking=True),
        )


class Pages(ABC):
    """Pages of a layer, in three parts: rotated keys, values and unrotated keys.

    `values` and `unrotated_keys` are [pages, KV heads, page size, head size], in any strides. Each
    backend keeps rotated keys in the layout of its kernel.
    """

    values: Tensor
    unrotated_keys: Tensor

    @abstractmethod
    def store(self, slots: PageSlots, rotated_keys: Tensor, values: Tensor) -> None:
        """Write what the kernel reads, [tokens, KV heads, head size] each, to slots."""

    @final
    def write(self, slots: PageSlots, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write unrotated keys and values, [tokens, KV heads, head size] each, to slots."""
        self.unrotated_keys[slots.page, :, slots.offset] = keys
        rotated = keys.clone(memory_format=torch.contiguous_format)
        rotate(model_rotary(), rotated, positions)
        self.store(slots, rotated, values)

    @final
    def move(self, moves: SlotMoves, pattern: int) -> None:
        """Move the slots that a compaction keeps in layers of a pattern.

        In parts, since vLLM sets no memory aside for copies. Within a sequence sources and targets
        increase and no source is before its target, so no part overwrites a later source.
        """
        for start in range(0, moves.positions.shape[0], _SLOTS_PER_COPY):
            part = slice(start, start + _SLOTS_PER_COPY)
            sources, targets = moves.sources[pattern, part], moves.targets[part]
            keys = self.unrotated_keys[sources.page, :, sources.offset]
            self.write(targets, moves.positions[part], keys, self.values_at(sources))

    @final
    def values_at(self, slots: PageSlots) -> Tensor:
        """Read the values of slots: [tokens, KV heads, head size]."""
        return self.values[slots.page, :, slots.offset]


@final
@dataclass(frozen=True)
class SubChunkTensors:
    """The tensors of `SubChunk`.

    Args:
        tokens: [tokens]; None for all tokens of the step.
        starts: [sequences + 1], int32.
        lengths: [sequences], int32.
        block_table: [sequences, pages], int32.
        positions: [tokens].
        slots: [tokens].
        moves: compactions to run first, if any.
        max_query_len: most tokens of a sequence.
        max_length: most slots of a sequence.
        kernel_plan: what the kernel prepares for a sub-chunk, if anything.
    """

    tokens: Tensor | None
    starts: Tensor
    lengths: Tensor
    block_table: Tensor
    positions: Tensor
    slots: PageSlots
    moves: SlotMoves | None
    max_query_len: int
    max_length: int
    kernel_plan: Any


@final
@dataclass(frozen=True)
class LadderMetadata:
    """Attention metadata of a step, shared by all layers.

    Args:
        sub_chunks: in the order in which they run.
        pattern_of_layer: index of each layer's pattern in `SlotMoves.sources`, by layer name.
    """

    sub_chunks: Sequence[SubChunkTensors]
    pattern_of_layer: Mapping[str, int]


KernelPlanner = Callable[[Tensor, Tensor], Any]
"""Prepares a kernel for a sub-chunk, given its `starts` and `lengths`."""


@final
class MetadataBuilder:
    """Builds the attention metadata of steps, for either backend.

    Args:
        schedule: of every sequence.
        layer_names: vLLM's, which contain the layers' numbers.
        page_size: slots in a page.
    """

    def __init__(
        self, schedule: ScheduleArrays, layer_names: Iterable[str], page_size: int
    ) -> None:
        self._schedule = schedule
        self._page_size = page_size
        self._pattern_of_layer = {
            name: schedule.pattern_of_layer[extract_layer_index(name)] for name in layer_names
        }

    @classmethod
    def from_config(
        cls, config: VllmConfig, layer_names: Iterable[str], page_size: int
    ) -> "MetadataBuilder":
        """Return the builder for the model of this process.

        Raises:
            ConfigError: the model has fewer positions than the budget has slots.
        """
        settings = PROCESS.settings()
        assert settings is not None
        validate_capacity(settings.budget)
        schedule = settings.schedule(config.model_config.get_total_num_hidden_layers())
        return cls(ScheduleArrays(schedule), layer_names, page_size)

    def build(
        self, step: CommonAttentionMetadata, seq_lens: Tensor, plan_kernel: KernelPlanner
    ) -> LadderMetadata:
        """Split a step into sub-chunks.

        Args:
            step: as vLLM gives it.
            seq_lens: [sequences] on CPU, tokens of each sequence with this step's.
            plan_kernel: see `KernelPlanner`.
        """
        # The rows of vLLM's block table fit the longest request; a ladder uses the first pages.
        width = -(-self._schedule.capacity // self._page_size)
        block_table = step.block_table_tensor[: step.num_reqs, :width]
        starts = step.query_start_loc_cpu[: step.num_reqs + 1].numpy().astype(np.int64)
        num_seen = seq_lens[: step.num_reqs].numpy().astype(np.int64) - np.diff(starts)
        pages = block_table.cpu().numpy().astype(np.int64)
        sub_chunks = split_step(self._schedule, num_seen, starts, pages, self._page_size)
        num_tokens = int(starts[-1])
        return LadderMetadata(
            [self._tensors(one, block_table, num_tokens, plan_kernel) for one in sub_chunks],
            self._pattern_of_layer,
        )

    def _tensors(
        self, one: SubChunk, block_table: Tensor, num_tokens: int, plan_kernel: KernelPlanner
    ) -> SubChunkTensors:
        device = block_table.device

        def put(array: Any) -> Tensor:
            return torch.from_numpy(array).to(device, non_blocking=True)

        starts, lengths = put(one.starts.astype(np.int32)), put(one.lengths.astype(np.int32))
        moves = one.moves
        return SubChunkTensors(
            tokens=None if len(one.tokens) == num_tokens else put(one.tokens),
            starts=starts,
            lengths=lengths,
            block_table=block_table[put(one.sequences)],
            positions=put(one.positions),
            slots=PageSlots.from_numpy(one.slots, self._page_size, device),
            moves=moves and SlotMoves.from_numpy(moves, self._page_size, device),
            max_query_len=int(np.diff(one.starts).max()),
            max_length=int(one.lengths.max()),
            kernel_plan=plan_kernel(starts, lengths),
        )


def attend_by_sub_chunk(
    metadata: LadderMetadata,
    layer_name: str,
    pages: Pages,
    attend: Callable[[SubChunkTensors, Tensor, Tensor], None],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
) -> None:
    """Compact, write and attend in one layer, sub-chunk by sub-chunk.

    Args:
        metadata: of the step.
        layer_name: vLLM's.
        pages: of the layer.
        attend: attention of rotated queries to the slots of their sequences, written to its last
            argument.
        query: [tokens, heads, head size], unrotated.
        key: [tokens, KV heads, head size], unrotated.
        value: [tokens, KV heads, head size].
        output: as `query`, written to.
    """
    pattern = metadata.pattern_of_layer[layer_name]
    for one in metadata.sub_chunks:
        if one.moves is not None:
            pages.move(one.moves, pattern)
        num_tokens = one.positions.shape[0]
        # vLLM may pad beyond the step's tokens.
        chosen = slice(num_tokens) if one.tokens is None else one.tokens
        pages.write(one.slots, one.positions, key[chosen], value[chosen])
        rotated = query[chosen].clone(memory_format=torch.contiguous_format)
        rotate(model_rotary(), rotated, one.positions)
        if one.tokens is None:
            attend(one, rotated, output[:num_tokens])
        else:
            found = torch.empty_like(output[:num_tokens])
            attend(one, rotated, found)
            output[one.tokens] = found
