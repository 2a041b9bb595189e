"""Attention on CPU under a policy, through vLLM's kernel."""

from functools import lru_cache
from typing import Any, final

import torch
from torch import Tensor
from vllm import _custom_ops as ops
from vllm import envs
from vllm.config import (
    VllmConfig,
    get_current_vllm_config,
    get_layers_from_vllm_config,
)
from vllm.model_executor.layers.attention import Attention
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


@final
class BoundedCpuBackend(CPUAttentionBackend):
    """vLLM's own CPU backend, unless this process has a policy."""

    @staticmethod
    def get_impl_cls() -> type[AttentionImpl]:
        """Return the attention of the model that vLLM builds now."""
        if PROCESS.resolve() is None:
            return CPUAttentionBackend.get_impl_cls()
        return BoundedCpuImpl

    @staticmethod
    def get_builder_cls() -> type[AttentionMetadataBuilder]:
        """Return the metadata builder of this process's model."""
        if PROCESS.settings() is None:
            return CPUAttentionBackend.get_builder_cls()
        return BoundedCpuBuilder

    @classmethod
    def customize_spec(cls, spec: AttentionSpec) -> AttentionSpec:
        """Bound the cache by the budget, if there is one."""
        if PROCESS.settings() is None:
            return spec
        return PROCESS.spec(spec)


@final
class BoundedCpuBuilder(CPUAttentionMetadataBuilder):
    """Splits steps into sub-chunks for the CPU kernel."""

    def __init__(
        self,
        kv_cache_spec: AttentionSpec,
        layer_names: list[str],
        vllm_config: VllmConfig,
        device: torch.device,
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.isa: str
        if self.isa == "amx":
            # Its pages reorder values, and compactions move values.
            self.isa = "vec"
            self._set_isa_to_layers(layer_names)
        validate_layout(self.isa, PROCESS.page_size(), self.head_dim, kv_cache_spec.dtype)
        self._metadata = MetadataBuilder.from_config(vllm_config, layer_names)
        total = get_layers_from_vllm_config(vllm_config, Attention, layer_names).values()
        self._heads_per_group = {layer.num_heads // layer.num_kv_heads for layer in total}.pop()

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> Any:
        """Build the attention metadata of a step."""
        step = common_attn_metadata
        return self._metadata.build(step, step.seq_lens, self._plan_kernel)

    def _plan_kernel(self, starts: Tensor, lengths: Tensor) -> Tensor:
        plan: Tensor = ops.cpu_attn_get_scheduler_metadata(
            num_reqs=len(lengths),
            num_heads=self._heads_per_group,
            num_kv_heads=1,
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
class BoundedCpuImpl(CPUAttentionBackendImpl):
    """Attention through vLLM's CPU kernel."""

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
        """Attend from a step's tokens to the slots of their sequences.

        Args:
            layer: vLLM's.
            query: [tokens, heads, head size], unrotated.
            key: [tokens, KV heads, head size], unrotated.
            value: [tokens, KV heads, head size].
            kv_cache: of all pages.
            attn_metadata: None while vLLM warms up.
            output: as `query`, written to.
            output_scale: refused.
            output_block_scale: refused.
        """
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("quantised output of attention on CPU")
        if attn_metadata is None:
            return output
        page_size = PROCESS.page_size()
        pages = CpuPages(kv_cache, self.head_size, page_size, layer.isa)

        def attend(
            one: SubChunkTensors, heads: LayerTensors, rotated: Tensor, found: Tensor
        ) -> None:
            ops.cpu_attention_with_kv_cache(
                query=rotated,
                key_cache=pages.rotated_keys,
                value_cache=pages.values,
                output=found,
                query_start_loc=heads.starts,
                seq_lens=heads.lengths,
                scale=self.scale,
                causal=True,
                alibi_slopes=self.alibi_slopes,
                sliding_window=self.sliding_window,
                block_table=heads.block_table,
                softcap=self.logits_soft_cap,
                scheduler_metadata=heads.kernel_plan,
                s_aux=self.sinks,
                kv_cache_dtype=self.kv_cache_dtype,
            )

        attend_by_sub_chunk(
            attn_metadata, layer.layer_name, pages, attend, query, key, value, output
        )
        return output


@final
class CpuPages(Pages):
    """Pages whose rotated keys are in the layout of vLLM's CPU kernel, which writes them.

    Args:
        kv_cache: of all pages, as vLLM allocates it.
        head_size: numbers of a key.
        page_size: slots in a page.
        isa: vLLM's name for the layout.
    """

    def __init__(self, kv_cache: Tensor, head_size: int, page_size: int, isa: str) -> None:
        super().__init__(kv_cache, head_size, page_size)
        self._isa = isa

    def store(self, slots: Tensor, rotated_keys: Tensor, values: Tensor) -> None:
        """Write rotated keys and values through the kernel."""
        ops.cpu_attn_reshape_and_cache(
            rotated_keys[:, None], values[:, None], self.rotated_keys, self.values, slots, self._isa
        )

    def keys_at(self, slots: Tensor) -> Tensor:
        """Read rotated keys from where the kernel wrote them."""
        stored, size = self.rotated_keys[:, 0], self.page_size
        places, strides = _key_places(self._isa, size, stored.shape[-1], stored.dtype)
        if strides is not None:
            # Several times faster. The kernel takes only keys that are contiguous.
            plain = stored.as_strided(stored.shape, (stored.stride(0), *strides))
            return plain[slots // size, slots % size].contiguous()
        flat = stored.flatten(1)
        return flat[(slots // size)[:, None], places[slots % size]]


@lru_cache(maxsize=8)
def _key_places(
    isa: str, page_size: int, head_size: int, dtype: torch.dtype
) -> tuple[Tensor, tuple[int, int] | None]:
    """Return where vLLM's kernel writes the numbers of keys.

    Returns:
        Indices [page size, head size] among the numbers of a page's keys; and their strides, if
        they have any.

    Raises:
        UnsupportedOperationError: some number has no place of its own.
    """
    total = page_size * head_size
    numbers = torch.arange(total)
    found = torch.zeros_like(numbers)
    # Every type has the whole numbers up to 256, so numbers are written digit by digit.
    unit = 1
    while unit < total:
        pages = CpuPages(torch.zeros(2 * total, dtype=dtype), head_size, page_size, isa)
        digits = (numbers // unit % 256).to(dtype).view(page_size, head_size)
        pages.store(torch.arange(page_size), digits, digits)
        found += unit * pages.rotated_keys.flatten().long()
        unit *= 256
    if not found.sort().values.equal(numbers):
        raise UnsupportedOperationError(
            f"vLLM's layout of keys on this processor ({isa}) is not known, so keys cannot be "
            "moved; use lacache.Engine"
        )
    places = found.argsort().view(page_size, head_size)
    strides = int(places[1, 0]), int(places[0, 1])
    evenly = torch.arange(page_size)[:, None] * strides[0] + torch.arange(head_size) * strides[1]
    return places, strides if places.equal(evenly) else None


def validate_layout(isa: str, page_size: int, head_size: int, dtype: torch.dtype) -> None:
    """Check that keys and values can be read back from where vLLM's kernel writes them.

    Raises:
        UnsupportedOperationError: it reorders values on this processor, or keys in an unknown way.
    """
    num_slots = 2 * page_size
    kv_cache = torch.zeros(2 * num_slots * head_size, dtype=dtype)
    pages = CpuPages(kv_cache, head_size, page_size, isa)
    slots = torch.arange(num_slots).flip(0)
    keys, values = torch.arange(len(kv_cache)).view(2, -1, head_size).to(dtype)
    pages.store(slots, keys, values)
    if not pages.values_at(slots).equal(values):
        raise UnsupportedOperationError(
            f"vLLM reorders values within a page on this processor ({isa}), so they cannot be "
            "moved; use lacache.Engine"
        )
    if not pages.keys_at(slots).equal(keys):
        raise UnsupportedOperationError(
            f"vLLM's layout of keys on this processor ({isa}) is not known, so keys cannot be "
            "moved; use lacache.Engine"
        )
