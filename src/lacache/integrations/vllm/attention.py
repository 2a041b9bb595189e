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

from lacache.integrations.vllm.positions import OriginalPositions
from lacache.integrations.vllm.process import PROCESS
from lacache.integrations.vllm.rotary import (
    model_rotary,
    rotate,
    rotate_back,
    validate_num_positions,
)
from lacache.integrations.vllm.schedule_arrays import Integers, ScheduleArrays
from lacache.integrations.vllm.sub_chunks import (
    Moves,
    SinkMoves,
    SubChunk,
    copies_per_page,
    split_step,
)
from lacache.policies.schedule import Schedule

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
class MoveTensors:
    """The tensors of `Moves`."""

    sources: PageSlots
    targets: PageSlots
    positions: Tensor | None
    lower: Tensor | None

    @classmethod
    def from_numpy(cls, moves: Moves, page_size: int, device: torch.device) -> "MoveTensors":
        """Copy moves to a device."""
        positions, lower = (
            None if array is None else torch.from_numpy(array).to(device, non_blocking=True)
            for array in (moves.positions, moves.lower)
        )
        return cls(
            PageSlots.from_numpy(moves.sources, page_size, device),
            PageSlots.from_numpy(moves.targets, page_size, device),
            positions,
            lower,
        )


@final
@dataclass(frozen=True)
class SinkTensors:
    """The tensors of `SinkMoves`."""

    copies: PageSlots
    slots: PageSlots
    positions: Tensor

    @classmethod
    def from_numpy(
        cls, sinks: SinkMoves, page_size: int, num_copies: int, device: torch.device
    ) -> "SinkTensors":
        """Copy moves of sinks to a device; see `copies_per_page` for `num_copies`."""
        return cls(
            PageSlots.from_numpy(sinks.copies, num_copies, device),
            PageSlots.from_numpy(sinks.slots, page_size, device),
            torch.from_numpy(sinks.positions).to(device, non_blocking=True),
        )


class Pages(ABC):
    """Pages of a layer: rotated keys and values by slot, and copies of unrotated keys.

    `values` are [pages, KV heads, page size, head size], in any strides. Each backend keeps rotated
    keys in the layout of its kernel. Copies are those of the sinks or, with slots as positions, of
    all keys: [pages, KV heads, copies, groups, numbers], where groups of numbers make up a key.
    """

    values: Tensor
    copies: Tensor

    @abstractmethod
    def store(self, slots: PageSlots, rotated_keys: Tensor, values: Tensor) -> None:
        """Write what the kernel reads, [tokens, KV heads, head size] each, to slots."""

    @abstractmethod
    def keys_at(self, slots: PageSlots) -> Tensor:
        """Read the rotated keys of slots: [tokens, KV heads, head size]."""

    @final
    def write(self, slots: PageSlots, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write unrotated keys, rotated to positions, and values to slots.

        Args:
            slots: [tokens].
            positions: [tokens].
            keys: [tokens, KV heads, head size].
            values: as `keys`.
        """
        rotated = keys.clone(memory_format=torch.contiguous_format)
        rotate(model_rotary(), rotated, positions)
        self.store(slots, rotated, values)

    @final
    def save(self, copies: PageSlots, keys: Tensor) -> None:
        """Store unrotated keys [tokens, KV heads, head size] as they are."""
        parts = keys.reshape(*keys.shape[:2], *self.copies.shape[-2:])
        self.copies[copies.page, :, copies.offset] = parts

    @final
    def move(self, moves: MoveTensors, pattern: int) -> None:
        """Move the slots that a compaction keeps in layers of a pattern.

        In parts, since vLLM sets no memory aside for copies. Within a sequence sources and targets
        increase and no source is before its target, so no part overwrites a later source.
        """
        for start in range(0, moves.targets.flat.shape[0], _SLOTS_PER_COPY):
            part = slice(start, start + _SLOTS_PER_COPY)
            sources, targets = moves.sources[pattern, part], moves.targets[part]
            values = self.values_at(sources)
            if moves.positions is not None:
                keys = self.unrotated_at(sources)
                self.save(targets, keys)
                self.write(targets, moves.positions[pattern, part], keys, values)
                continue
            keys = self.keys_at(sources)
            if moves.lower is not None:
                keys = rotate_back(model_rotary(), keys, moves.lower[pattern, part])
            self.store(targets, keys, values)

    @final
    def rotate_sinks(self, sinks: SinkTensors, pattern: int) -> None:
        """Rotate sinks anew, in layers of a pattern."""
        keys = self.unrotated_at(sinks.copies)
        self.write(sinks.slots, sinks.positions[pattern], keys, self.values_at(sinks.slots))

    @final
    def values_at(self, slots: PageSlots) -> Tensor:
        """Read the values of slots: [tokens, KV heads, head size]."""
        return self.values[slots.page, :, slots.offset]

    @final
    def unrotated_at(self, copies: PageSlots) -> Tensor:
        """Read unrotated keys: [tokens, KV heads, head size]."""
        return self.copies[copies.page, :, copies.offset].flatten(-2)


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
        saved: [saved], indices among the sub-chunk's tokens; None for all.
        copies: [saved].
        moves: to run first, if any.
        sinks: to rotate anew after `moves`, if any.
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
    saved: Tensor | None
    copies: PageSlots
    moves: MoveTensors | None
    sinks: SinkTensors | None
    max_query_len: int
    max_length: int
    kernel_plan: Any


@final
@dataclass(frozen=True)
class LadderMetadata:
    """Attention metadata of a step, shared by all layers.

    Args:
        sub_chunks: in the order in which they run.
        pattern_of_layer: index of each layer's pattern in `MoveTensors.sources`, by layer name.
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
        trained_length: positions that the model was trained on.
        layer_names: vLLM's, which contain the layers' numbers.
        page_size: slots in a page.
    """

    def __init__(
        self, schedule: Schedule, trained_length: int, layer_names: Iterable[str], page_size: int
    ) -> None:
        self._schedule = ScheduleArrays(schedule)
        self._original = (
            OriginalPositions(self._schedule, trained_length)
            if schedule.positions == "original"
            else None
        )
        self._pages_per_sequence = -(-schedule.capacity // page_size)
        self._page_size = page_size
        self._num_copies = copies_per_page(schedule, page_size)
        patterns = self._schedule.pattern_of_layer
        self._pattern_of_layer = {name: patterns[extract_layer_index(name)] for name in layer_names}

    @classmethod
    def from_config(
        cls, config: VllmConfig, layer_names: Iterable[str], page_size: int
    ) -> "MetadataBuilder":
        """Return the builder for the model of this process.

        Raises:
            ConfigError: the model's rotary layer has fewer positions than keys may stand at.
        """
        schedule = PROCESS.schedule()
        assert schedule is not None
        trained_length = config.model_config.hf_text_config.max_position_embeddings
        validate_num_positions(schedule, trained_length)
        return cls(schedule, trained_length, layer_names, page_size)

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
        block_table = step.block_table_tensor[: step.num_reqs, : self._pages_per_sequence]
        starts = step.query_start_loc_cpu[: step.num_reqs + 1].numpy().astype(np.int64)
        num_seen = seq_lens[: step.num_reqs].numpy().astype(np.int64) - np.diff(starts)
        pages = block_table.cpu().numpy().astype(np.int64)
        sub_chunks = split_step(
            self._schedule, self._original, num_seen, starts, pages, self._page_size
        )
        num_tokens = int(starts[-1])
        return LadderMetadata(
            [self._tensors(one, block_table, num_tokens, plan_kernel) for one in sub_chunks],
            self._pattern_of_layer,
        )

    def _tensors(
        self, one: SubChunk, block_table: Tensor, num_tokens: int, plan_kernel: KernelPlanner
    ) -> SubChunkTensors:
        device, page_size, num_copies = block_table.device, self._page_size, self._num_copies

        def put(array: Any) -> Tensor:
            return torch.from_numpy(array).to(device, non_blocking=True)

        starts, lengths = put(one.starts.astype(np.int32)), put(one.lengths.astype(np.int32))
        moves, sinks = one.moves, one.sinks
        return SubChunkTensors(
            tokens=None if len(one.tokens) == num_tokens else put(one.tokens),
            starts=starts,
            lengths=lengths,
            block_table=block_table[put(one.sequences)],
            positions=put(one.positions),
            slots=PageSlots.from_numpy(one.slots, page_size, device),
            saved=None if len(one.saved) == len(one.tokens) else put(one.saved),
            copies=PageSlots.from_numpy(one.copies, num_copies, device),
            moves=moves and MoveTensors.from_numpy(moves, page_size, device),
            sinks=sinks and SinkTensors.from_numpy(sinks, page_size, num_copies, device),
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
        if one.sinks is not None:
            pages.rotate_sinks(one.sinks, pattern)
        num_tokens = one.positions.shape[0]
        # vLLM may pad beyond the step's tokens.
        chosen = slice(num_tokens) if one.tokens is None else one.tokens
        keys = key[chosen]
        if one.copies.flat.shape[0]:
            pages.save(one.copies, keys if one.saved is None else keys[one.saved])
        pages.write(one.slots, one.positions, keys, value[chosen])
        rotated = query[chosen].clone(memory_format=torch.contiguous_format)
        rotate(model_rotary(), rotated, one.positions)
        if one.tokens is None:
            attend(one, rotated, output[:num_tokens])
        else:
            found = torch.empty_like(output[:num_tokens])
            attend(one, rotated, found)
            output[one.tokens] = found
