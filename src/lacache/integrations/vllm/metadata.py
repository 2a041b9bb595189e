"""Attention metadata of a step, shared by all layers.

vLLM's kernels take one length for each sequence. Heads that hold different tokens have different
lengths, so each KV head of a sequence is a sequence of its own, with the queries of its group.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.attention.backend import CommonAttentionMetadata

from lacache.integrations.vllm.kv_cache import PAGES_PER_BLOCK
from lacache.integrations.vllm.pages import MoveTensors, SinkTensors, put
from lacache.integrations.vllm.process import PROCESS
from lacache.integrations.vllm.rotary import ensure_num_positions
from lacache.integrations.vllm.schedule_arrays import Integers
from lacache.integrations.vllm.sub_chunks import SubChunk, split_step
from lacache.integrations.vllm.worker_heads import WorkerHeads


@final
@dataclass(frozen=True)
class LayerTensors:
    """A sub-chunk in a layer with H KV heads: each is a sequence of its own for S sequences.

    Args:
        starts: where the tokens of each start [H * S + 1], int32.
        lengths: slots in use [H * S], int32.
        block_table: pages [H * S, pages], int32.
        positions: [H * tokens].
        slots: page slots to write to [H * tokens].
        copies: where unrotated keys are stored [H * saved].
        moves: to run first, if any.
        sinks: to rotate anew after `moves`, if any.
        max_length: most slots of a head.
        kernel_plan: what the kernel prepares, if anything.
    """

    starts: Tensor
    lengths: Tensor
    block_table: Tensor
    positions: Tensor
    slots: Tensor
    copies: Tensor
    moves: MoveTensors | None
    sinks: SinkTensors | None
    max_length: int
    kernel_plan: Any


@final
@dataclass(frozen=True)
class SubChunkTensors:
    """The tensors of `SubChunk`.

    Args:
        tokens: [tokens]; None for all tokens of the step.
        num_tokens: how many there are.
        saved: [saved], indices among the sub-chunk's tokens; None for all.
        max_query_len: most tokens of a sequence.
        layers: of the worker.
    """

    tokens: Tensor | None
    num_tokens: int
    saved: Tensor | None
    max_query_len: int
    layers: Sequence[LayerTensors]


@final
@dataclass(frozen=True)
class StepMetadata:
    """Attention metadata of a step, shared by all layers.

    Args:
        sub_chunks: in the order in which they run.
        index_of_layer: of each layer in `SubChunkTensors.layers`, by layer name.
    """

    sub_chunks: Sequence[SubChunkTensors]
    index_of_layer: Mapping[str, int]


KernelPlanner = Callable[[Tensor, Tensor], Any]
"""Prepares a kernel for heads as sequences, given their `starts` and `lengths`."""


@final
class MetadataBuilder:
    """Builds the attention metadata of steps, for either backend.

    Args:
        heads: of the worker.
        layer_names: vLLM's, which contain the layers' numbers.
        pages_per_block: pages in a block of vLLM's.
    """

    def __init__(
        self, heads: WorkerHeads, layer_names: Iterable[str], pages_per_block: int
    ) -> None:
        self._heads = heads
        self._pages_per_block = pages_per_block
        indices = {layer: index for index, layer in enumerate(heads.layers)}
        self._index_of_layer = {name: indices[extract_layer_index(name)] for name in layer_names}
        self._tables = [
            np.array([*zip_longest(*heads.tables[own], fillvalue=0)], dtype=np.int64).T
            for own in heads.layers.values()
        ]
        self._last_pages: Integers = np.empty((0, 0), dtype=np.int64)
        self._last_tables: list[Tensor] = []

    @classmethod
    def from_config(cls, config: VllmConfig, layer_names: Iterable[str]) -> "MetadataBuilder":
        """Return the builder for the model of this process.

        Raises:
            ConfigError: the model's rotary layer has fewer positions than keys may stand at.
        """
        ensure_num_positions(
            PROCESS.schedules(), config.model_config.hf_text_config.max_position_embeddings
        )
        return cls(PROCESS.heads(), layer_names, PAGES_PER_BLOCK)

    def build(
        self, step: CommonAttentionMetadata, seq_lens: Tensor, plan_kernel: KernelPlanner
    ) -> StepMetadata:
        """Split a step into sub-chunks.

        Args:
            step: as vLLM gives it.
            seq_lens: [sequences] on CPU, tokens of each sequence with this step's.
            plan_kernel: see `KernelPlanner`.
        """
        # The rows of vLLM's block table fit the longest request.
        blocks_needed = -(-self._heads.num_pages // self._pages_per_block)
        blocks = step.block_table_tensor[: step.num_reqs, :blocks_needed]
        within = np.arange(self._pages_per_block)
        numbers = blocks.cpu().numpy().astype(np.int64)[:, :, None] * len(within) + within
        pages = numbers.reshape(step.num_reqs, -1)
        starts = step.query_start_loc_cpu[: step.num_reqs + 1].numpy().astype(np.int64)
        num_seen = seq_lens[: step.num_reqs].numpy().astype(np.int64) - np.diff(starts)
        num_tokens = int(starts[-1])
        device = blocks.device
        return StepMetadata(
            [
                self._tensors(one, pages, num_tokens, device, plan_kernel)
                for one in split_step(self._heads, num_seen, starts, pages)
            ],
            self._index_of_layer,
        )

    def _block_tables(self, pages: Integers, device: torch.device) -> list[Tensor]:
        """Return the pages of each layer's heads [H * S, pages], given those of S sequences."""
        if not np.array_equal(pages, self._last_pages):
            self._last_pages = pages
            by_head = [pages[:, table].swapaxes(0, 1) for table in self._tables]
            self._last_tables = [
                put(each.reshape(-1, each.shape[2]).astype(np.int32), device) for each in by_head
            ]
        return self._last_tables

    def _tensors(
        self,
        one: SubChunk,
        pages: Integers,
        num_tokens: int,
        device: torch.device,
        plan_kernel: KernelPlanner,
    ) -> SubChunkTensors:
        lengths, slots, copies, positions = (
            put(array, device) for array in (one.lengths, one.slots, one.copies, one.positions)
        )
        lengths = lengths.int()
        starts: dict[int, Tensor] = {}
        plans: dict[bytes, Any] = {}
        layers = []
        tables = self._block_tables(pages[one.sequences], device)
        for index, (own, table) in enumerate(zip(self._heads.layers.values(), tables, strict=True)):
            count, of_layer = own.stop - own.start, one.lengths[own]
            if count not in starts:
                each = one.starts[:-1] + len(one.tokens) * np.arange(count)[:, None]
                ends = np.append(each.ravel(), count * len(one.tokens))
                starts[count] = put(ends.astype(np.int32), device)
            its_lengths = lengths[own].view(-1)
            key = of_layer.tobytes()
            if key not in plans:
                plans[key] = plan_kernel(starts[count], its_lengths)
            moves, sinks = one.moves[index], one.sinks[index]
            layers.append(
                LayerTensors(
                    starts=starts[count],
                    lengths=its_lengths,
                    block_table=table,
                    positions=positions[own].view(-1),
                    slots=slots[own].view(-1),
                    copies=copies[own].view(-1),
                    moves=moves and MoveTensors.from_numpy(moves, device),
                    sinks=sinks and SinkTensors.from_numpy(sinks, device),
                    max_length=int(of_layer.max()),
                    kernel_plan=plans[key],
                )
            )
        return SubChunkTensors(
            tokens=None if len(one.tokens) == num_tokens else put(one.tokens, device),
            num_tokens=len(one.tokens),
            saved=None if len(one.saved) == len(one.tokens) else put(one.saved, device),
            max_query_len=int(np.diff(one.starts).max()),
            layers=layers,
        )
