"""Which pages a request has: all that it will ever need, from its admission to its end."""

from collections.abc import Sequence
from typing import Any, final

from vllm.v1.core.single_type_kv_cache_manager import SingleTypeKVCacheManager
from vllm.v1.kv_cache_interface import KVCacheSpec

from lacache.integrations.vllm.spec import LadderSpec


@final
class LadderManager(SingleTypeKVCacheManager):
    """Claims a request's pages once. No request can run out of them later."""

    def __init__(self, kv_cache_spec: KVCacheSpec, **others: Any) -> None:
        super().__init__(kv_cache_spec, **others)
        assert isinstance(kv_cache_spec, LadderSpec)
        self._num_pages = kv_cache_spec.num_pages

    def get_num_blocks_to_allocate(self, request_id: str, *args: Any, **kwargs: Any) -> int:
        """All, or none more."""
        return self._num_pages - len(self.req_to_blocks.get(request_id, ()))

    def allocate_new_blocks(self, request_id: str, *args: Any, **kwargs: Any) -> list[Any]:
        """All, or none more."""
        held = self.req_to_blocks[request_id]
        pages = self.block_pool.get_new_blocks(self._num_pages - len(held))
        held.extend(pages)
        return pages

    def allocate_external_computed_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Nothing comes from outside: connectors are refused."""

    def add_local_computed_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is found in a prefix cache."""

    def cache_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Pages are not put in a prefix cache."""

    def get_num_common_prefix_blocks(self, running_request_id: str) -> int:
        """None, as no two requests share pages; vLLM 0.31 asks."""
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
        """No hit."""
        return tuple([] for _ in kv_cache_group_ids), 0
