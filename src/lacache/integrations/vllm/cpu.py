"""Ladder attention on CPU, through vLLM's kernel."""

from functools import lru_cache
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
from lacache.integrations.vllm.attention import (
    LadderMetadata,
    MetadataBuilder,
    Pages,
    PageSlots,
    SubChunkTensors,
    attend_by_sub_chunk,
)
from lacache.integrations.vllm.kv_cache import LadderSpec
from lacache.integrations.vllm.process import PROCESS


@final
class LadderCpuBackend(CPUAttentionBackend):
    """vLLM's own CPU backend, unless this process serves a ladder."""

    @staticmethod
    def get_impl_cls() -> type[AttentionImpl]:
        """Return the attention of the model that vLLM builds now."""
        if PROCESS.resolve() is None:
            return CPUAttentionBackend.get_impl_cls()
        return LadderCpuImpl

    @staticmethod
    def get_builder_cls() -> type[AttentionMetadataBuilder]:
        """Return the metadata builder of this process's model."""
        if PROCESS.settings() is None:
            return CPUAttentionBackend.get_builder_cls()
        return LadderCpuBuilder

    @classmethod
    def customize_spec(cls, spec: AttentionSpec) -> AttentionSpec:
        """Bound a layer's cache by the budget, if there is one."""
        schedule = PROCESS.schedule()
        return spec if schedule is None else LadderSpec.from_full(spec, schedule)


@final
class LadderCpuBuilder(CPUAttentionMetadataBuilder):
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
        validate_layout(self.isa, self.block_size, self.head_dim, kv_cache_spec.dtype)
        self._metadata = MetadataBuilder.from_config(vllm_config, layer_names, self.block_size)

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
    """Attention through vLLM's CPU kernel."""

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
        attn_metadata: LadderMetadata | None,
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
            kv_cache: see `CpuPages`.
            attn_metadata: None while vLLM warms up.
            output: as `query`, written to.
            output_scale: refused.
            output_block_scale: refused.
        """
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("quantised output of attention on CPU")
        if attn_metadata is None:
            return output
        pages = CpuPages(kv_cache, self.head_size, layer.isa)

        def attend(one: SubChunkTensors, rotated: Tensor, found: Tensor) -> None:
            ops.cpu_attention_with_kv_cache(
                query=rotated,
                key_cache=pages.rotated_keys,
                value_cache=pages.values,
                output=found,
                query_start_loc=one.starts,
                seq_lens=one.lengths,
                scale=self.scale,
                causal=True,
                alibi_slopes=self.alibi_slopes,
                sliding_window=self.sliding_window,
                block_table=one.block_table,
                softcap=self.logits_soft_cap,
                scheduler_metadata=one.kernel_plan,
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
        kv_cache: [pages, KV heads, page size, key, value and a part of a copy].
        head_size: of keys and values.
        isa: vLLM's name for the layout.
    """

    def __init__(self, kv_cache: Tensor, head_size: int, isa: str) -> None:
        num_pages, num_heads, page_size, size = kv_cache.shape
        flat = kv_cache.view(num_pages, num_heads, page_size * size)

        def part(first: int, count: int) -> Tensor:
            numbers = flat[..., first * head_size : (first + count) * head_size]
            return numbers.view(num_pages, num_heads, count, head_size)

        self.rotated_keys = part(0, page_size)
        self.values = part(page_size, page_size)
        num_copies = page_size * (size - 2 * head_size) // head_size
        self.copies = part(2 * page_size, num_copies).unsqueeze(-2)
        self._isa = isa

    def store(self, slots: PageSlots, rotated_keys: Tensor, values: Tensor) -> None:
        """Write rotated keys and values through the kernel."""
        ops.cpu_attn_reshape_and_cache(
            rotated_keys, values, self.rotated_keys, self.values, slots.flat, self._isa
        )

    def keys_at(self, slots: PageSlots) -> Tensor:
        """Read rotated keys from where the kernel wrote them."""
        num_pages, num_heads, page_size, head_size = self.rotated_keys.shape
        places, strides = _key_places(self._isa, page_size, head_size, self.rotated_keys.dtype)
        if strides is not None:
            # Several times faster. The kernel takes only keys that are contiguous.
            stored = self.rotated_keys
            plain = stored.as_strided(stored.shape, (*stored.stride()[:2], *strides))
            return plain[slots.page, :, slots.offset].contiguous()
        flat = self.rotated_keys.view(num_pages, num_heads, page_size * head_size)
        heads = torch.arange(num_heads)[:, None]
        return flat[slots.page[:, None, None], heads, places[slots.offset][:, None]]


@lru_cache(maxsize=8)
def _key_places(
    isa: str, page_size: int, head_size: int, dtype: torch.dtype
) -> tuple[Tensor, tuple[int, int] | None]:
    """Return where vLLM's kernel writes the numbers of keys.

    Returns:
        Indices [page size, head size] among the numbers of a page and KV head; and their strides,
        if they have any.

    Raises:
        UnsupportedOperationError: some number has no place of its own.
    """
    total = page_size * head_size
    numbers = torch.arange(total)
    found = torch.zeros_like(numbers)
    slots = PageSlots.from_numpy(np.arange(page_size), page_size, torch.device("cpu"))
    # Every type has the whole numbers up to 256, so numbers are written digit by digit.
    unit = 1
    while unit < total:
        pages = CpuPages(torch.zeros(1, 1, page_size, 2 * head_size, dtype=dtype), head_size, isa)
        digits = (numbers // unit % 256).to(dtype).view(page_size, 1, head_size)
        pages.store(slots, digits, digits)
        found += unit * pages.rotated_keys.flatten().long()
        unit *= 256
    if not found.sort().values.equal(numbers):
        raise UnsupportedOperationError(
            f"vLLM's layout of keys on this processor ({isa}) is not known, so a ladder cannot "
            "move them; try positions=slots in the policy, or use lacache.Engine"
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
    kv_cache = torch.zeros(2, 2, page_size, 2 * head_size, dtype=dtype)
    pages = CpuPages(kv_cache, head_size, isa)
    slots = PageSlots.from_numpy(
        np.arange(2 * page_size)[::-1].copy(), page_size, torch.device("cpu")
    )
    keys, values = torch.arange(8 * page_size * head_size).view(2, -1, 2, head_size).to(dtype)
    pages.store(slots, keys, values)
    if not pages.values_at(slots).equal(values):
        raise UnsupportedOperationError(
            f"vLLM reorders values within a page on this processor ({isa}), so a ladder cannot "
            "move them; use lacache.Engine"
        )
    if not pages.keys_at(slots).equal(keys):
        raise UnsupportedOperationError(
            f"vLLM's layout of keys on this processor ({isa}) is not known, so a ladder cannot "
            "move them; use lacache.Engine"
        )
