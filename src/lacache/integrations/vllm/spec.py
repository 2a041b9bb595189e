"""What a layer's cache takes in vLLM's memory: as many pages as the capacity needs, for ever."""

from dataclasses import dataclass
from typing import final

from vllm.config import VllmConfig
from vllm.utils.math_utils import cdiv
from vllm.utils.torch_utils import get_dtype_size
from vllm.v1.kv_cache_interface import AttentionSpec, FullAttentionSpec


@final
@dataclass(frozen=True, kw_only=True)
class LadderSpec(AttentionSpec):
    """Pages of one layer. A slot holds a key turned to its place, a value, and the key as it came.

    The third is what keys are turned from at a compaction: turned from the first, they would drift
    in 16 bits (docs/adr/0009).

    Args:
        capacity: slots of a sequence.
    """

    dcp_sharded: bool = False
    capacity: int

    @classmethod
    def of(cls, spec: AttentionSpec, capacity: int) -> "LadderSpec":
        """For a layer whose cache would grow."""
        assert isinstance(spec, FullAttentionSpec)
        return cls(
            block_size=spec.block_size,
            num_kv_heads=spec.num_kv_heads,
            head_size=spec.head_size,
            dtype=spec.dtype,
            state_content_bytes=3 * spec.head_size * get_dtype_size(spec.dtype),
            max_tp_shards=spec.max_tp_shards,
            capacity=capacity,
        )

    @property
    def num_pages(self) -> int:
        """Of a sequence."""
        return cdiv(self.capacity, self.block_size)

    @property
    def prefix_cacheable(self) -> bool:
        """No: pages hold other tokens than the first ones."""
        return False

    def max_memory_usage_bytes(self, vllm_config: VllmConfig) -> int:
        """The same for any length."""
        return self.num_pages * self.page_size_bytes

    def max_num_blocks_per_req(self, vllm_config: VllmConfig, max_len: int) -> int:
        """Entries of a request's table of pages; vLLM also looks up those that are never used."""
        return max(super().max_num_blocks_per_req(vllm_config, max_len), self.num_pages)
