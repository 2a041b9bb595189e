"""Memory of a ladder in vLLM: the spec of a layer's cache, and the manager of its pages."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from vllm.config import VllmConfig
from vllm.utils.math_utils import cdiv
from vllm.utils.torch_utils import get_dtype_size
from vllm.v1.core.single_type_kv_cache_manager import SingleTypeKVCacheManager
from vllm.v1.kv_cache_interface import AttentionSpec, FullAttentionSpec, KVCacheSpec


@final
@dataclass(frozen=True, kw_only=True)
class LadderSpec(AttentionSpec):
    """Cache of one layer: a fixed number of pages for a sequence of any length.

    A slot holds a rotated key, a value and the unrotated key. Compactions rotate from the unrotated
    key: re-rotating the rotated one would drift in 16 bits (docs/adr/0009).

    Args:
        capacity: slots of a sequence.
    """

    dcp_sharded: bool = False
    capacity: int

    @classmethod
    def from_full(cls, spec: AttentionSpec, capacity: int) -> "LadderSpec":
        """Return the bounded spec of a layer that vLLM planned a growing cache for."""
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
        """Pages of a sequence."""
        return cdiv(self.capacity, self.block_size)

    @property
    def prefix_cacheable(self) -> bool:
        """Always false: pages do not hold the first tokens of a sequence in order."""
        return False

    def max_memory_usage_bytes(self, vllm_config: VllmConfig) -> int:
        """Bytes of a sequence, independent of its length."""
        return self.num_pages * self.page_size_bytes

    def max_num_blocks_per_req(self, vllm_config: VllmConfig, max_len: int) -> int:
        """Entries of a request's block table; vLLM also reads those that are never used."""
        return max(super().max_num_blocks_per_req(vllm_config, max_len), self.num_pages)


@final
class LadderManager(SingleTypeKVCacheManager):
    """Allocate all pages of a request at its admission, so it never runs out of them."""

    def __init__(self, kv_cache_spec: KVCacheSpec, **others: Any) -> None:
        super().__init__(kv_cache_spec, **others)
        assert isinstance(kv_cache_spec, LadderSpec)
        self._num_pages = kv_cache_spec.num_pages

    def get_num_blocks_to_allocate(self, request_id: str, *args: Any, **kwargs: Any) -> int:
        """Return the number of pages that a request still lacks."""
        return self._num_pages - len(self.req_to_blocks.get(request_id, ()))

    def allocate_new_blocks(self, request_id: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Allocate the pages that a request still lacks."""
        held = self.req_to_blocks[request_id]
        pages = self.block_pool.get_new_blocks(self._num_pages - len(held))
        held.extend(pages)
        return pages

    def allocate_external_computed_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: KV connectors are refused."""

    def add_local_computed_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: there is no prefix caching."""

    def cache_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: there is no prefix caching."""

    def get_num_common_prefix_blocks(self, running_request_id: str) -> int:
        """Return 0, as requests share no pages; vLLM 0.31 calls this."""
        return 0

    @classmethod
    def find_longest_cache_hit(
        cls,
        block_hashes: Any,
        max_length: int,
        kv_cache_group_ids: Sequence[int],
        *args: Any,
        **kwargs: Any,
    ) -> tuple[tuple[list[Any], ...], int]:
        """Return no hit: there is no prefix caching."""
        return tuple([] for _ in kv_cache_group_ids), 0
