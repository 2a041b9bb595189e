"""Attention over the slots of KV heads: what the CPU and CUDA backends share."""

from collections.abc import Callable

import torch
from torch import Tensor

from lacache.integrations.vllm.metadata import LayerTensors, StepMetadata, SubChunkTensors
from lacache.integrations.vllm.pages import Pages
from lacache.integrations.vllm.rotary import model_rotary, rotate

Attend = Callable[[SubChunkTensors, LayerTensors, Tensor, Tensor], None]
"""Attends from rotated queries [H * tokens, heads of a group, head size] to the slots of each head,
and writes the result, of the same shape, to its last argument."""


def attend_by_sub_chunk(
    metadata: StepMetadata,
    layer_name: str,
    pages: Pages,
    attend: Attend,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
) -> None:
    """Compact, write and attend in one layer, sub-chunk by sub-chunk.

    Args:
        metadata: of the step.
        layer_name: vLLM's.
        pages: of the pool.
        attend: see `Attend`.
        query: [tokens, heads, head size], unrotated.
        key: [tokens, KV heads, head size], unrotated.
        value: [tokens, KV heads, head size].
        output: as `query`, written to.
    """
    index = metadata.index_of_layer[layer_name]
    num_heads, size = key.shape[1:]
    by_head = (num_heads, query.shape[1] // num_heads, size)
    for one in metadata.sub_chunks:
        layer = one.layers[index]
        if layer.moves is not None:
            pages.move(layer.moves)
        if layer.sinks is not None:
            pages.rotate_sinks(layer.sinks)
        # vLLM may pad beyond the step's tokens.
        chosen = slice(one.num_tokens) if one.tokens is None else one.tokens
        keys = key[chosen].transpose(0, 1)
        if layer.copies.shape[0]:
            saved = keys if one.saved is None else keys[:, one.saved]
            pages.copies[layer.copies] = saved.reshape(-1, size)
        keys = keys.clone(memory_format=torch.contiguous_format).view(-1, size)
        values = value[chosen].transpose(0, 1).contiguous().view(-1, size)
        pages.write(layer.slots, layer.positions, keys, values)
        queries = query[chosen].view(-1, *by_head).transpose(0, 1)
        queries = queries.clone(memory_format=torch.contiguous_format).flatten(0, 1)
        rotate(model_rotary(), queries, layer.positions)
        found = torch.empty_like(queries)
        attend(one, layer, queries, found)
        output.view(-1, *by_head)[chosen] = found.view(num_heads, -1, *by_head[1:]).transpose(0, 1)
