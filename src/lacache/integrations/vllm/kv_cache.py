"""Memory of a sequence in vLLM: the spec of the pool that all layers share, and its manager."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.v1.core.single_type_kv_cache_manager import SingleTypeKVCacheManager
from vllm.v1.kv_cache_interface import AttentionSpec, FullAttentionSpec, KVCacheSpec

from lacache.errors import ConfigError

PAGES_PER_BLOCK = 8
"""Pages in a block of vLLM's, so that its lists of blocks stay short."""


@final
@dataclass(frozen=True, kw_only=True)
class BoundedSpec(AttentionSpec):
    """The pool of pages: a fixed number of blocks for a sequence of any length.

    A block is a few pages, and a page holds slots of one KV head of any layer: a rotated key and a
    value each, as in vLLM. Unrotated keys, from which keys that move are rotated, have pages of
    their own, since re-rotating rotated keys again and again would drift in 16 bits
    (docs/adr/0009, 0022).

    Args:
        num_blocks: of a sequence, in all layers of the worker that needs most.
        identity: of what a sequence keeps; vLLM refuses workers with different specs.
    """

    dcp_sharded: bool = False
    num_blocks: int
    identity: str

    @classmethod
    def from_full(
        cls, spec: AttentionSpec, page_size: int, num_pages: int, identity: str = ""
    ) -> "BoundedSpec":
        """Return the spec of the pool, given that of a layer that vLLM planned a growing cache for.

        Args:
            spec: vLLM's.
            page_size: slots in a page.
            num_pages: of a sequence.
            identity: of what a sequence keeps.
        """
        assert isinstance(spec, FullAttentionSpec)
        return cls(
            block_size=page_size * PAGES_PER_BLOCK,
            num_kv_heads=1,
            head_size=spec.head_size,
            dtype=spec.dtype,
            max_tp_shards=spec.max_tp_shards,
            num_blocks=-(-num_pages // PAGES_PER_BLOCK),
            identity=identity,
        )

    @property
    def prefix_cacheable(self) -> bool:
        """Always false: pages do not hold the first tokens of a sequence in order."""
        return False

    def max_memory_usage_bytes(self, vllm_config: VllmConfig) -> int:
        """Bytes of a sequence, independent of its length."""
        return self.num_blocks * self.page_size_bytes

    def max_num_blocks_per_req(self, vllm_config: VllmConfig, max_len: int) -> int:
        """Entries of a request's block table; vLLM also reads those that are never used."""
        return max(super().max_num_blocks_per_req(vllm_config, max_len), self.num_blocks)


def share_pool(layers: Mapping[str, Any]) -> None:
    """Share the cache of the first attention layer among all, by vLLM's own mechanism.

    Args:
        layers: of the worker, by name, in order of depth.
    """
    names = [name for name, layer in layers.items() if isinstance(layer, Attention)]
    for name in names[1:]:
        layers[name].kv_sharing_target_layer_name = names[0]


@final
class BoundedManager(SingleTypeKVCacheManager):
    """Allocate all blocks of a request at its admission, so it never runs out of them."""

    def __init__(self, kv_cache_spec: KVCacheSpec, **others: Any) -> None:
        super().__init__(kv_cache_spec, **others)
        assert isinstance(kv_cache_spec, BoundedSpec)
        if self.kv_cache_group_id:
            raise ConfigError(
                "the stages of the pipeline keep different tokens of a sequence, as they found "
                "different head profiles; give the profile in additional_config (docs/vllm.md)"
            )
        self._num_blocks = kv_cache_spec.num_blocks

    def get_num_blocks_to_allocate(self, request_id: str, *args: Any, **kwargs: Any) -> int:
        """Return the number of blocks that a request still lacks."""
        return self._num_blocks - len(self.req_to_blocks.get(request_id, ()))

    def allocate_new_blocks(self, request_id: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Allocate the blocks that a request still lacks."""
        held = self.req_to_blocks[request_id]
        blocks = self.block_pool.get_new_blocks(self._num_blocks - len(held))
        held.extend(blocks)
        return blocks

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
