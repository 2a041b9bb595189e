"""The experimental CUDA backend on a CPU, with a stand-in for FlashAttention in plain torch."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding
from vllm.v1.attention.backends import fa_utils

from lacache.integrations.vllm import rotary
from lacache.integrations.vllm.cuda_experimental import ExperimentalCudaImpl
from lacache.integrations.vllm.kv_cache import PAGES_PER_BLOCK
from lacache.integrations.vllm.metadata import MetadataBuilder
from lacache.integrations.vllm.process import PROCESS
from lacache.integrations.vllm.worker_heads import WorkerHeads
from lacache.policies import ModelShape, parse_policy
from tests.integrations.vllm.slow_positions import SlowPositions

LAYERS, HEADS, SIZE, PAGE, STEP = 4, 2, 32, 16, 100
CHUNKS = [(7, 60, 0), (1, 1, 90), (30, 0, 1), (100, 25, 1), (1, 1, 70), (50, 90, 60)]
POLICIES = [
    "ladder:span=2:overlap=1:evict_batch=5",
    # The history and two tiers of windows, which shrink for it.
    "retrieval:heads=1.0+3.1/0.1+3.0:window=0.5:evict_batch=4:sinks=2",
]


def stand_in(
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    cu_seqlens_q: Tensor,
    max_seqlen_q: int,
    seqused_k: Tensor,
    max_seqlen_k: int,
    softmax_scale: float,
    block_table: Tensor,
    **others: Any,
) -> None:
    """FlashAttention over pages [pages, page size, KV heads, head size]."""
    assert others["causal"]
    for sequence, length in enumerate(seqused_k.tolist()):
        start, stop = cu_seqlens_q[sequence : sequence + 2].tolist()
        assert stop - start <= max_seqlen_q
        assert length <= max_seqlen_k
        keys = k[block_table[sequence]].flatten(0, 1)[:length]
        values = v[block_table[sequence]].flatten(0, 1)[:length]
        hidden = torch.ones(stop - start, length, dtype=torch.bool).tril(length - (stop - start))
        out[start:stop] = scaled_dot_product_attention(
            *(states.transpose(0, 1)[None] for states in (q[start:stop], keys, values)),
            attn_mask=hidden,
            scale=softmax_scale,
            enable_gqa=True,
        )[0].transpose(0, 1)


def rotated(states: Tensor, positions: Tensor) -> Tensor:
    """Rotate keys or queries [N, H, D], written out."""
    angles = positions[:, None].double() / 1e4 ** (torch.arange(0, SIZE, 2) / SIZE)
    cos, sin = angles.cos()[:, None].float(), angles.sin()[:, None].float()
    one, other = states.chunk(2, dim=-1)
    return torch.cat([one * cos - other * sin, other * cos + one * sin], dim=-1)


def attended(query: Tensor, keys: Tensor, values: Tensor, standing: Tensor) -> Tensor:
    """Attend from the newest token, with the queries [heads, D] of a KV head, to its tokens."""
    rotated_query = rotated(query[None], standing[-1:]).transpose(0, 1)
    rotated_keys = rotated(keys[:, None], standing).transpose(0, 1)
    return scaled_dot_product_attention(rotated_query, rotated_keys, values[None])[:, 0]


@pytest.fixture
def impl(monkeypatch: pytest.MonkeyPatch) -> ExperimentalCudaImpl:
    """The attention of a layer, without what only a GPU has."""
    with set_current_vllm_config(VllmConfig()):
        layer = RotaryEmbedding(SIZE, SIZE, 4096, 1e4, True, torch.float32)
    monkeypatch.setattr(rotary, "_MODEL_ROTARIES", [layer])
    monkeypatch.setattr(fa_utils, "flash_attn_varlen_func", stand_in, raising=False)
    one = ExperimentalCudaImpl.__new__(ExperimentalCudaImpl)
    same = {"alibi_slopes": None, "logits_soft_cap": 0, "sinks": None, "sliding_window": (-1, -1)}
    one.__dict__ |= {"head_size": SIZE, "scale": SIZE**-0.5, "vllm_flash_attn_version": 2} | same
    return one


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("positions", "trained_length"), [("slots", 4096), ("original", 4096), ("original", 60)]
)
def test_layers_attend_to_the_kept_tokens(
    impl: ExperimentalCudaImpl,
    policy: str,
    positions: str,
    trained_length: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three sequences in one pool, which all layers share."""
    groups = parse_policy(f"{policy}:positions={positions}").bind(ModelShape((HEADS,) * LAYERS), 40)
    shard = dict.fromkeys(range(LAYERS), range(HEADS))
    heads = WorkerHeads(groups, shard, PAGE, STEP, trained_length)
    monkeypatch.setattr(PROCESS, "_workers", {(0, 0): heads})
    generator = torch.Generator().manual_seed(0)
    blocks = -(-heads.num_pages // PAGES_PER_BLOCK)
    table = 1 + torch.randperm(3 * blocks, generator=generator).view(3, -1).int()
    kv_cache = torch.zeros(1 + 3 * blocks, 2, PAGES_PER_BLOCK * PAGE, 1, SIZE)
    names = [f"model.layers.{layer}.self_attn.attn" for layer in range(LAYERS)]
    builder = MetadataBuilder(heads, names, PAGES_PER_BLOCK)
    schedules = [group.schedule for group in groups]
    slow = [SlowPositions(schedules, trained_length) for _ in range(3)]
    num_seen = torch.zeros(3, dtype=torch.int64)
    # By sequence, of its tokens in every layer.
    keys, values = (torch.zeros(3, LAYERS, 300, HEADS, SIZE) for _ in range(2))
    checked = 0
    for counts in CHUNKS:
        starts = torch.tensor([0, *counts]).cumsum(0).int()
        step = SimpleNamespace(num_reqs=3, block_table_tensor=table, query_start_loc_cpu=starts)
        seq_lens = num_seen + torch.tensor(counts)
        metadata = builder.build(step, seq_lens, lambda starts, lengths: None)
        q = torch.randn(LAYERS, sum(counts), 2 * HEADS, SIZE, generator=generator)
        k, v = torch.randn(2, LAYERS, sum(counts), HEADS, SIZE, generator=generator)
        output = torch.full_like(q, torch.nan)
        for layer, name in enumerate(names):
            named = SimpleNamespace(layer_name=name)
            inputs = q[layer], k[layer], v[layer], kv_cache, metadata, output[layer]
            impl.forward(named, *inputs)
        for sequence, count in enumerate(counts):
            first, own = int(num_seen[sequence]), slice(*starts[sequence : sequence + 2])
            keys[sequence, :, first : first + count] = k[:, own]
            values[sequence, :, first : first + count] = v[:, own]
            for token in range(own.start, own.stop):
                slow[sequence].insert()
                for index, group in enumerate(groups):
                    for layer, own_heads in group.heads.items():
                        pattern = group.pattern(layer)
                        kept = slow[sequence].kept[index].by_pattern[pattern]
                        standing = torch.tensor(slow[sequence].standing(index, pattern))
                        if positions == "slots":
                            standing = torch.arange(len(kept))
                        for head in own_heads:
                            expected = attended(
                                q[layer, token].view(HEADS, 2, SIZE)[head],
                                keys[sequence, layer, kept, head],
                                values[sequence, layer, kept, head],
                                standing,
                            )
                            found = output[layer, token].view(HEADS, 2, SIZE)[head]
                            assert torch.allclose(found, expected, atol=2e-5)
                            checked += 1
        num_seen = seq_lens
    assert checked == sum(map(sum, CHUNKS)) * LAYERS * HEADS
