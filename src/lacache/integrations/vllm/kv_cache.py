"""Memory of a ladder in vLLM: the spec of a layer's cache, and the manager of its pages."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from vllm.config import VllmConfig
from vllm.utils.math_utils import cdiv
from vllm.utils.torch_utils import get_dtype_size
from vllm.v1.core.single_type_kv_cache_manager import SingleTypeKVCacheManager
from vllm.v1.kv_cache_interface import AttentionSpec, FullAttentionSpec, KVCacheSpec

from lacache.integrations.vllm.sub_chunks import copies_per_page
from lacache.policies import Schedule


@final
@dataclass(frozen=True, kw_only=True)
class LadderSpec(AttentionSpec):
    """Cache of one layer: a fixed number of pages for a sequence of any length.

    A slot holds a rotated key and a value, as in vLLM, and a page has room for unrotated keys
    behind its slots: with original positions for a few sinks', with slots as positions for all,
    since re-rotating rotated keys again and again would drift in 16 bits (docs/adr/0009, 0022).

    Args:
        capacity: slots of a sequence.
    """

    dcp_sharded: bool = False
    capacity: int

    @classmethod
    def from_full(cls, spec: AttentionSpec, schedule: Schedule, alignment: int = 1) -> "LadderSpec":
        """Return the bounded spec of a layer that vLLM planned a growing cache for.

        Args:
            spec: vLLM's.
            schedule: of every sequence.
            alignment: bytes of a slot are a multiple of it, as far as vLLM's own are.
        """
        assert isinstance(spec, FullAttentionSpec)
        num_copies = copies_per_page(schedule, spec.block_size)
        item = get_dtype_size(spec.dtype)
        extra = numbers_per_slot(num_copies, spec.block_size, spec.head_size, alignment // item)
        return cls(
            block_size=spec.block_size,
            num_kv_heads=spec.num_kv_heads,
            head_size=spec.head_size,
            dtype=spec.dtype,
            state_content_bytes=(2 * spec.head_size + extra) * item,
            max_tp_shards=spec.max_tp_shards,
            capacity=schedule.capacity,
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


def numbers_per_slot(num_copies: int, page_size: int, head_size: int, least: int) -> int:
    """Return how many numbers each slot gives to copies of keys, which are divided among slots.

    Args:
        num_copies: of a page, at most its slots.
        page_size: slots in a page.
        head_size: numbers of a key.
        least: the result is a multiple of this number, if it is not all of a key.
    """
    if not num_copies:
        return 0
    works = (
        numbers
        for numbers in range(max(1, least), head_size, max(1, least))
        # A key takes whole slots.
        if head_size % numbers == 0 and num_copies * head_size <= page_size * numbers
    )
    return next(works, head_size)


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
