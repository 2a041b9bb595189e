"""vLLM's attention on CPU, over the slots of a ladder."""

from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from vllm import _custom_ops as ops
from vllm import envs
from vllm.config import VllmConfig
from vllm.v1.attention.backend import (
    AttentionImpl,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
)
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)
from vllm.v1.kv_cache_interface import AttentionSpec

from lacache.errors import UnsupportedOperationError
from lacache.integrations.vllm.arrays import ScheduleArrays
from lacache.integrations.vllm.pages import Pages, PageSlots
from lacache.integrations.vllm.process import PROCESS
from lacache.integrations.vllm.rotary import validate_reach
from lacache.integrations.vllm.spec import LadderSpec
from lacache.integrations.vllm.step import ReadyRound, ReadyStep, ready, rows_of_layers, run


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
        validate_reach(settings.budget)
        validate_values(self.isa, self.block_size, self.head_dim, kv_cache_spec.dtype)
        self._schedule = ScheduleArrays(
            settings.schedule(vllm_config.model_config.get_total_num_hidden_layers())
        )
        self._rows = rows_of_layers(self._schedule, layer_names)

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> Any:
        """The rounds of a step."""
        step = common_attn_metadata
        return ready(self._schedule, self._rows, step, step.seq_lens, self.block_size, self._plan)

    def _plan(self, starts: Tensor, lengths: Tensor) -> Tensor:
        plan: Tensor = ops.cpu_attn_get_scheduler_metadata(
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
        )
        return plan


@final
class LadderCpuImpl(CPUAttentionBackendImpl):
    """Attends through vLLM's kernel."""

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
        attn_metadata: ReadyStep | None,
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
        pages = CpuPages(kv_cache, layer.isa)

        def attend(one: ReadyRound, turned: Tensor, found: Tensor) -> None:
            ops.cpu_attention_with_kv_cache(
                query=turned,
                key_cache=pages.turned_keys,
                value_cache=pages.values,
                output=found,
                query_start_loc=one.starts,
                seq_lens=one.lengths,
                scale=self.scale,
                causal=True,
                alibi_slopes=self.alibi_slopes,
                sliding_window=self.sliding_window,
                block_table=one.table,
                softcap=self.logits_soft_cap,
                scheduler_metadata=one.plan,
                s_aux=self.sinks,
                kv_cache_dtype=self.kv_cache_dtype,
            )

        run(attn_metadata, layer.layer_name, pages, attend, query, key, value, output)
        return output


@final
class CpuPages(Pages):
    """Within a page vLLM keeps turned keys in an order of its own, which its kernel writes.

    Args:
        kv_cache: [pages, KV heads, page size, 3 * head size].
        isa: vLLM's name for the order.
    """

    def __init__(self, kv_cache: Tensor, isa: str) -> None:
        num_pages, num_heads, page_size, _ = kv_cache.shape
        parts = kv_cache.view(num_pages, num_heads, 3 * page_size, -1).chunk(3, dim=2)
        self.turned_keys, self.values, self.keys = parts
        self._isa = isa

    def store(self, slots: PageSlots, turned_keys: Tensor, values: Tensor) -> None:
        """Both through the kernel."""
        ops.cpu_attn_reshape_and_cache(
            turned_keys, values, self.turned_keys, self.values, slots.flat, self._isa
        )


def validate_values(isa: str, page_size: int, head_size: int, dtype: torch.dtype) -> None:
    """Check that values can be read back from where vLLM's kernel puts them.

    Raises:
        UnsupportedOperationError: it has an order of its own for them on this processor.
    """
    pages = CpuPages(torch.zeros(2, 1, page_size, 3 * head_size, dtype=dtype), isa)
    slots = PageSlots.of(np.arange(2 * page_size)[::-1].copy(), page_size, torch.device("cpu"))
    values = torch.arange(2 * page_size * head_size).view(-1, 1, head_size).to(dtype)
    pages.store(slots, values, values)
    if not pages.values_at(slots).equal(values):
        raise UnsupportedOperationError(
            f"vLLM keeps values in an order of its own on this processor ({isa}), and a ladder "
            "could not move them"
        )
