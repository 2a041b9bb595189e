"""The layers and KV heads of each worker, as vLLM divides them."""

from collections.abc import Sequence

from vllm.distributed.utils import get_pp_indices

from lacache.integrations.vllm.worker_heads import Shard


def all_shards(stages: int, ranks: int, num_heads: Sequence[int]) -> dict[tuple[int, int], Shard]:
    """Return what each worker has, by its stage of the pipeline and its tensor parallel rank.

    Where there are fewer KV heads than ranks, several ranks have the same.

    Args:
        stages: of the pipeline.
        ranks: tensor parallel.
        num_heads: KV heads of each layer.
    """
    shards: dict[tuple[int, int], Shard] = {}
    for stage in range(stages):
        layers = range(*get_pp_indices(len(num_heads), stage, stages))
        for rank in range(ranks):
            shards[stage, rank] = {
                layer: _heads_of_rank(num_heads[layer], rank, ranks) for layer in layers
            }
    return shards


def _heads_of_rank(num_heads: int, rank: int, ranks: int) -> range:
    own = max(1, num_heads // ranks)
    first = rank * own if num_heads >= ranks else rank // (ranks // num_heads)
    return range(first, first + own)
