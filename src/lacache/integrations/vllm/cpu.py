"""vLLM's attention on CPU, over the slots of a ladder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from vllm import _custom_ops as ops
from vllm import envs
from vllm.config import VllmConfig
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.attention.backend import AttentionImpl, AttentionMetadataBuilder
from vllm.v1.attention.backend import CommonAttentionMetadata as StepMetadata
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)
from vllm.v1.kv_cache_interface import AttentionSpec

from lacache.core.errors import UnsupportedOperationError
from lacache.integrations.vllm.arrays import Integers, ScheduleArrays
from lacache.integrations.vllm.process import PROCESS
from lacache.integrations.vllm.rotary import check_reach, table_of_model, turn
from lacache.integrations.vllm.rounds import Moves, Round, cut_into_rounds
from lacache.integrations.vllm.spec import LadderSpec


@final
class LadderCpuBackend(CPUAttentionBackend):
    """vLLM's own backend, unless this process serves a ladder."""

    @staticmethod
    def get_impl_cls() -> type[AttentionImpl]:
        """The ladder's, if the model that is built now has one."""
        if PROCESS.decide() is None:
            return CPUAttentionBackend.get_impl_cls()
        return LadderCpuImpl

    @staticmethod
    def get_builder_cls() -> type[AttentionMetadataBuilder]:
        """The ladder's, if this process serves one."""
        if PROCESS.settings() is None:
            return CPUAttentionBackend.get_builder_cls()
        return LadderCpuBuilder

    @classmethod
    def customize_spec(cls, spec: AttentionSpec) -> AttentionSpec:
        """As many pages as the budget needs."""
        settings = PROCESS.settings()
        return spec if settings is None else LadderSpec.of(spec, settings.budget)


@final
@dataclass(frozen=True)
class PageSlots:
    """Slots of pages as vLLM's tensors index them: [...], each int64."""

    flat: Tensor
    page: Tensor
    offset: Tensor

    @classmethod
    def of(cls, slots: Integers, page_size: int) -> "PageSlots":
        """From page slots."""
        flat = torch.from_numpy(slots)
        return cls(flat, flat // page_size, flat % page_size)

    def __getitem__(self, row: int) -> "PageSlots":
        return PageSlots(self.flat[row], self.page[row], self.offset[row])


@final
@dataclass(frozen=True)
class CpuMoves:
    """`Moves`, ready for every layer."""

    sources: PageSlots
    targets: PageSlots
    positions: Tensor

    @classmethod
    def of(cls, moves: Moves, page_size: int) -> "CpuMoves":
        """From arrays."""
        return cls(
            PageSlots.of(moves.sources, page_size),
            PageSlots.of(moves.targets, page_size),
            torch.from_numpy(moves.positions),
        )


@final
@dataclass(frozen=True)
class CpuRound:
    """`Round`, ready for every layer. No `tokens` are all of the step's."""

    tokens: Tensor | None
    starts: Tensor
    lengths: Tensor
    pages: Tensor
    positions: Tensor
    slots: PageSlots
    moves: CpuMoves | None
    plan: Tensor


@final
@dataclass(frozen=True)
class LadderMetadata:
    """A step, for every layer."""

    rounds: Sequence[CpuRound]
    row_of_layer: Sequence[int]


@final
class LadderCpuBuilder(CPUAttentionMetadataBuilder):
    """Cuts steps into rounds."""

    def __init__(
        self,
        kv_cache_spec: AttentionSpec,
        layer_names: list[str],
        vllm_config: VllmConfig,
        device: torch.device,
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        settings = PROCESS.settings()
        assert settings is not None
        self.isa: str
        if self.isa == "amx":
            # Its pages hold values in an order of its own, and compactions move values.
            self.isa = "vec"
            self._set_isa_to_layers(layer_names)
        check_values(self.isa, self.block_size, self.head_dim, self.dtype)
        check_reach(settings.budget)
        self._schedule = ScheduleArrays(
            settings.schedule(vllm_config.model_config.get_total_num_hidden_layers())
        )

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: StepMetadata,
        fast_build: bool = False,
    ) -> Any:
        """The rounds of a step."""
        step = common_attn_metadata
        starts = step.query_start_loc_cpu[: step.num_reqs + 1].numpy().astype(np.int64)
        num_seen = step.seq_lens[: step.num_reqs].numpy().astype(np.int64) - np.diff(starts)
        pages = step.block_table_tensor[: step.num_reqs]
        rounds = cut_into_rounds(
            self._schedule, num_seen, starts, pages.numpy().astype(np.int64), self.block_size
        )
        return LadderMetadata(
            [self._ready(round, pages, int(starts[-1])) for round in rounds],
            self._schedule.row_of_layer,
        )

    def _ready(self, round: Round, pages: Tensor, num_tokens: int) -> CpuRound:
        is_whole = len(round.tokens) == num_tokens
        starts = torch.from_numpy(round.starts).int()
        lengths = torch.from_numpy(round.lengths).int()
        return CpuRound(
            tokens=None if is_whole else torch.from_numpy(round.tokens),
            starts=starts,
            lengths=lengths,
            pages=pages[torch.from_numpy(round.sequences)],
            positions=torch.from_numpy(round.positions),
            slots=PageSlots.of(round.slots, self.block_size),
            moves=None if round.moves is None else CpuMoves.of(round.moves, self.block_size),
            plan=ops.cpu_attn_get_scheduler_metadata(
                num_reqs=len(lengths),
                num_heads=self.num_heads,
                num_kv_heads=self.num_kv_heads,
                head_dim=self.head_dim,
                seq_lens=lengths,
                dtype=self.dtype,
                query_start_loc=starts,
                causal=True,
                sliding_window_size=self.window_size,
                isa=self.isa,
                enable_kv_split=envs.VLLM_CPU_ATTN_SPLIT_KV,
                kv_cache_dtype=self.kv_cache_dtype,
            ),
        )


@final
class LadderCpuImpl(CPUAttentionBackendImpl):
    """Compacts, writes and attends, round by round."""

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """Nothing: a token may have to wait for a compaction, so `forward` writes."""

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: LadderMetadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Attention of a step's tokens, each to what its sequence keeps.

        Args:
            layer: vLLM's.
            query: [tokens, heads, head size], not turned.
            key: [tokens, KV heads, head size], not turned.
            value: [tokens, KV heads, head size].
            kv_cache: [pages, KV heads, page size, 3 * head size].
            attn_metadata: None while vLLM warms up.
            output: as `query`, written to.
            output_scale: refused.
            output_block_scale: refused.
        """
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("quantised output of attention on CPU")
        if attn_metadata is None:
            return output
        pages = _Pages.over(kv_cache, layer.isa)
        row = attn_metadata.row_of_layer[extract_layer_index(layer.layer_name)]
        for round in attn_metadata.rounds:
            if round.moves is not None:
                pages.move(round.moves, row)
            if round.tokens is None:
                n = len(round.positions)
                self._attend(pages, round, query[:n], key[:n], value[:n], output[:n])
            else:
                part = torch.empty_like(output[: len(round.positions)])
                tokens = round.tokens
                self._attend(pages, round, query[tokens], key[tokens], value[tokens], part)
                output[tokens] = part
        return output

    def _attend(
        self,
        pages: "_Pages",
        round: CpuRound,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
    ) -> None:
        pages.write(round.slots, round.positions, key, value)
        query = query.clone(memory_format=torch.contiguous_format)
        turn(table_of_model(), query, round.positions)
        ops.cpu_attention_with_kv_cache(
            query=query,
            key_cache=pages.turned_keys,
            value_cache=pages.values,
            output=output,
            query_start_loc=round.starts,
            seq_lens=round.lengths,
            scale=self.scale,
            causal=True,
            alibi_slopes=self.alibi_slopes,
            sliding_window=self.sliding_window,
            block_table=round.pages,
            softcap=self.logits_soft_cap,
            scheduler_metadata=round.plan,
            s_aux=self.sinks,
            kv_cache_dtype=self.kv_cache_dtype,
        )


@final
@dataclass(frozen=True)
class _Pages:
    """A layer's pages, in three parts: each [pages, KV heads, page size, head size].

    Turned keys are in vLLM's own order within a page, so they are only written through its kernel.
    """

    turned_keys: Tensor
    values: Tensor
    keys: Tensor
    isa: str

    @classmethod
    def over(cls, kv_cache: Tensor, isa: str) -> "_Pages":
        num_pages, num_heads, page_size, _ = kv_cache.shape
        parts = kv_cache.view(num_pages, num_heads, 3 * page_size, -1).chunk(3, dim=2)
        return cls(parts[0], parts[1], parts[2], isa)

    def write(self, slots: PageSlots, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put keys (not turned) and values, [tokens, KV heads, head size], into slots."""
        self.keys[slots.page, :, slots.offset] = keys
        turned = keys.clone(memory_format=torch.contiguous_format)
        turn(table_of_model(), turned, positions)
        ops.cpu_attn_reshape_and_cache(
            turned, values, self.turned_keys, self.values, slots.flat, self.isa
        )

    def values_at(self, slots: PageSlots) -> Tensor:
        """[tokens, KV heads, head size]."""
        return self.values[slots.page, :, slots.offset]

    def move(self, moves: CpuMoves, row: int) -> None:
        """Put what is in a pattern's sources into the targets."""
        sources = moves.sources[row]
        keys = self.keys[sources.page, :, sources.offset]
        self.write(moves.targets, moves.positions, keys, self.values_at(sources))


def check_values(isa: str, page_size: int, head_size: int, dtype: torch.dtype) -> None:
    """Check that values can be read back from where vLLM's kernel puts them.

    Raises:
        UnsupportedOperationError: it has an order of its own for them on this processor.
    """
    pages = _Pages.over(torch.zeros(2, 1, page_size, 3 * head_size, dtype=dtype), isa)
    slots = PageSlots.of(np.arange(2 * page_size)[::-1].copy(), page_size)
    values = torch.arange(2 * page_size * head_size).view(-1, 1, head_size).to(dtype)
    pages.write(slots, slots.flat % page_size, values, values)
    if not pages.values_at(slots).equal(values):
        raise UnsupportedOperationError(
            f"vLLM keeps values in an order of its own on this processor ({isa}), and a ladder "
            "could not move them"
        )
