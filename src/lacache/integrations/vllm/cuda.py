"""FlashAttention in vLLM, over the slots of a ladder.

Never run on a GPU: tested with a stand-in for FlashAttention, and against vLLM's interfaces only.
"""

import logging
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.v1.attention.backend import (
    AttentionCGSupport,
    AttentionImpl,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
)
from vllm.v1.attention.backends import fa_utils
from vllm.v1.attention.backends.flash_attn import FlashAttentionBackend, FlashAttentionImpl
from vllm.v1.kv_cache_interface import AttentionSpec

from lacache.errors import ConfigError
from lacache.integrations.vllm.arrays import ScheduleArrays
from lacache.integrations.vllm.pages import Pages, PageSlots
from lacache.integrations.vllm.process import PROCESS
from lacache.integrations.vllm.rotary import validate_reach
from lacache.integrations.vllm.spec import LadderSpec
from lacache.integrations.vllm.step import ReadyRound, ReadyStep, ready, rows_of_layers, run

_LOGGER = logging.getLogger("vllm.lacache")


@final
class LadderCudaBackend(FlashAttentionBackend):
    """For `--attention-backend CUSTOM`."""

    @staticmethod
    def get_name() -> str:
        """As it is registered."""
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[AttentionImpl]:
        """The ladder's.

        Raises:
            ConfigError: there are no settings for one.
        """
        if PROCESS.decide() is None:
            raise ConfigError(
                "--attention-backend CUSTOM is lacache's and needs settings; try "
                """--additional-config '{"lacache": {"budget": 512}}'"""
            )
        _LOGGER.warning("lacache was never run on CUDA: compare its texts first")
        return LadderCudaImpl

    @staticmethod
    def get_builder_cls() -> type[AttentionMetadataBuilder]:
        """The ladder's."""
        return LadderCudaBuilder

    @classmethod
    def customize_spec(cls, spec: AttentionSpec) -> AttentionSpec:
        """As many pages as the budget needs."""
        settings = PROCESS.settings()
        assert settings is not None
        return LadderSpec.of(spec, settings.budget)


@final
class LadderCudaBuilder(AttentionMetadataBuilder[Any]):
    """Cuts steps into rounds."""

    # A step has as many rounds as compactions fall into it, which no graph can know.
    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.NEVER

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
        validate_reach(settings.budget)
        self._page_size = kv_cache_spec.block_size
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
        # Exact but for speculative decoding, which is refused.
        seq_lens = step.seq_lens_cpu_upper_bound
        assert seq_lens is not None
        return ready(
            self._schedule,
            self._rows,
            step,
            seq_lens,
            self._page_size,
            _no_plan,
        )


def _no_plan(starts: Tensor, lengths: Tensor) -> None:
    """FlashAttention needs nothing beforehand."""


@final
class LadderCudaImpl(FlashAttentionImpl):
    """Attends through FlashAttention."""

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
        """As on CPU (`LadderCpuImpl.forward`)."""
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("quantised output of attention")
        if attn_metadata is None:
            return output.fill_(0)
        pages = CudaPages(kv_cache, self.head_size)

        def attend(one: ReadyRound, turned: Tensor, found: Tensor) -> None:
            # Not there on machines without a GPU, where this file is only tested.
            fa_utils.flash_attn_varlen_func(
                q=turned,
                k=pages.turned_keys.transpose(1, 2),
                v=pages.values.transpose(1, 2),
                out=found,
                cu_seqlens_q=one.starts,
                max_seqlen_q=one.longest_query,
                seqused_k=one.lengths,
                max_seqlen_k=one.longest,
                softmax_scale=self.scale,
                causal=True,
                alibi_slopes=self.alibi_slopes,
                window_size=list(self.sliding_window),
                block_table=one.table,
                softcap=self.logits_soft_cap,
                fa_version=self.vllm_flash_attn_version,
                s_aux=self.sinks,
            )

        run(attn_metadata, layer.layer_name, pages, attend, query, key, value, output)
        return output


@final
class CudaPages(Pages):
    """All three parts are in plain order.

    Args:
        kv_cache: [pages, KV heads, page size, 3 * head size], in any strides.
        head_size: of keys and values.
    """

    def __init__(self, kv_cache: Tensor, head_size: int) -> None:
        parts = torch.split(kv_cache, head_size, dim=-1)
        self.turned_keys, self.values, self.keys = parts

    def store(self, slots: PageSlots, turned_keys: Tensor, values: Tensor) -> None:
        """Both as they are."""
        self.turned_keys[slots.page, :, slots.offset] = turned_keys
        self.values[slots.page, :, slots.offset] = values
