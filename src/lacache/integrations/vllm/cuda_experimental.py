"""Experimental: attention on CUDA under a policy, through vLLM's FlashAttention.

Never run on a GPU. Tested on a CPU, with a stand-in for FlashAttention.
"""

import logging
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from vllm.config import VllmConfig, get_current_vllm_config
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
from lacache.integrations.vllm.attention import attend_by_sub_chunk
from lacache.integrations.vllm.kv_cache import share_pool
from lacache.integrations.vllm.metadata import (
    LayerTensors,
    MetadataBuilder,
    StepMetadata,
    SubChunkTensors,
)
from lacache.integrations.vllm.pages import Pages
from lacache.integrations.vllm.process import PROCESS

_LOGGER = logging.getLogger("vllm.lacache")


@final
class ExperimentalCudaBackend(FlashAttentionBackend):
    """The backend of `--attention-backend CUSTOM`; experimental."""

    @staticmethod
    def get_name() -> str:
        """Return the name under which the backend is registered."""
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[AttentionImpl]:
        """Return the attention of the model that vLLM builds now.

        Raises:
            ConfigError: the model has no settings for a policy.
        """
        if PROCESS.resolve() is None:
            raise ConfigError(
                "--attention-backend CUSTOM is lacache's and needs settings; try "
                """--additional-config '{"lacache": {"budget": 512}}'"""
            )
        _LOGGER.warning(
            "lacache on CUDA is experimental: it was never run there; compare its output first"
        )
        return ExperimentalCudaImpl

    @staticmethod
    def get_builder_cls() -> type[AttentionMetadataBuilder]:
        """Return the metadata builder."""
        return ExperimentalCudaBuilder

    @classmethod
    def customize_spec(cls, spec: AttentionSpec) -> AttentionSpec:
        """Bound a layer's cache by the budget."""
        return PROCESS.spec(spec)


@final
class ExperimentalCudaBuilder(AttentionMetadataBuilder[Any]):
    """Splits steps into sub-chunks for FlashAttention."""

    # The number of sub-chunks of a step is not fixed, so no graph can hold it.
    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.NEVER

    def __init__(
        self,
        kv_cache_spec: AttentionSpec,
        layer_names: list[str],
        vllm_config: VllmConfig,
        device: torch.device,
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self._metadata = MetadataBuilder.from_config(vllm_config, layer_names)

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> Any:
        """Build the attention metadata of a step."""
        step = common_attn_metadata
        # Exact but for speculative decoding, which is refused.
        seq_lens = step.seq_lens_cpu_upper_bound
        assert seq_lens is not None
        return self._metadata.build(step, seq_lens, _no_plan)


def _no_plan(starts: Tensor, lengths: Tensor) -> None:
    """Return None: FlashAttention prepares nothing."""


@final
class ExperimentalCudaImpl(FlashAttentionImpl):
    """Attention through FlashAttention; experimental."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._layers = get_current_vllm_config().compilation_config.static_forward_context

    def process_weights_after_loading(self, act_dtype: torch.dtype) -> None:
        """Share one pool among the layers of the process, before caches are planned."""
        super().process_weights_after_loading(act_dtype)
        share_pool(self._layers)

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """Do nothing: `forward` writes, as a compaction may have to run before."""

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: StepMetadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Attend as `BoundedCpuImpl.forward` does on CPU."""
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("quantised output of attention")
        if attn_metadata is None:
            return output.fill_(0)
        pages = ExperimentalCudaPages(kv_cache, self.head_size, PROCESS.page_size())

        def attend(
            one: SubChunkTensors, heads: LayerTensors, rotated: Tensor, found: Tensor
        ) -> None:
            # Looked up late: vLLM lacks it on machines without a GPU, where the tests run.
            fa_utils.flash_attn_varlen_func(
                q=rotated,
                k=pages.rotated_keys.transpose(1, 2),
                v=pages.values.transpose(1, 2),
                out=found,
                cu_seqlens_q=heads.starts,
                max_seqlen_q=one.max_query_len,
                seqused_k=heads.lengths,
                max_seqlen_k=heads.max_length,
                softmax_scale=self.scale,
                causal=True,
                alibi_slopes=self.alibi_slopes,
                window_size=list(self.sliding_window),
                block_table=heads.block_table,
                softcap=self.logits_soft_cap,
                fa_version=self.vllm_flash_attn_version,
                s_aux=self.sinks,
            )

        attend_by_sub_chunk(
            attn_metadata, layer.layer_name, pages, attend, query, key, value, output
        )
        return output


@final
class ExperimentalCudaPages(Pages):
    """Pages whose rotated keys are in plain order."""

    def store(self, slots: Tensor, rotated_keys: Tensor, values: Tensor) -> None:
        """Write rotated keys and values."""
        page, offset = slots // self.page_size, slots % self.page_size
        self.rotated_keys[page, 0, offset] = rotated_keys
        self.values[page, 0, offset] = values

    def keys_at(self, slots: Tensor) -> Tensor:
        """Return the rotated keys of slots."""
        return self.rotated_keys[slots // self.page_size, 0, slots % self.page_size]
