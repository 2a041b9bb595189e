"""The experimental CUDA backend on a CPU, with a stand-in for FlashAttention in plain torch."""

from dataclasses import replace
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
from lacache.integrations.vllm.attention import MetadataBuilder
from lacache.integrations.vllm.cuda_experimental import ExperimentalCudaImpl
from lacache.integrations.vllm.kv_cache import numbers_per_slot
from lacache.integrations.vllm.sub_chunks import copies_per_page
from lacache.policies import Ladder
from tests.integrations.vllm.slow_positions import SlowPositions

HEADS, SIZE, PAGE = 2, 32, 16
POLICY = Ladder(span=3, overlap=1, evict_batch=5)
CHUNKS = [(7, 60, 0), (1, 1, 90), (30, 0, 1), (1, 25, 1)]


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


@pytest.mark.parametrize(
    ("positions", "trained_length"), [("slots", 4096), ("original", 4096), ("original", 60)]
)
def test_sub_chunks_attend_to_the_kept_tokens(
    positions: str, trained_length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with set_current_vllm_config(VllmConfig()):
        layer = RotaryEmbedding(SIZE, SIZE, 4096, 1e4, True, torch.float32)
    monkeypatch.setattr(rotary, "_MODEL_ROTARIES", [layer])
    monkeypatch.setattr(fa_utils, "flash_attn_varlen_func", stand_in, raising=False)
    generator = torch.Generator().manual_seed(0)
    impl = ExperimentalCudaImpl.__new__(ExperimentalCudaImpl)
    same = {"alibi_slopes": None, "logits_soft_cap": 0, "sinks": None, "sliding_window": (-1, -1)}
    impl.__dict__ |= {"head_size": SIZE, "scale": SIZE**-0.5, "vllm_flash_attn_version": 2} | same
    pages = torch.tensor([[4, 1, 7], [2, 9, 3], [8, 5, 6]], dtype=torch.int32)
    schedule = replace(POLICY, positions=positions).schedule(6, 40)
    extra = numbers_per_slot(copies_per_page(schedule, PAGE), PAGE, SIZE, 4)
    kv_cache = torch.zeros(10, HEADS, PAGE, 2 * SIZE + extra)
    layer = SimpleNamespace(layer_name="model.layers.4.self_attn.attn")
    builder = MetadataBuilder(schedule, trained_length, [layer.layer_name], PAGE)
    slow = [SlowPositions(schedule, trained_length) for _ in range(3)]
    pattern = schedule.patterns[4]
    keys: list[list[Tensor]] = [[], [], []]
    values: list[list[Tensor]] = [[], [], []]
    checked = 0
    for counts in CHUNKS:
        num_new = sum(counts)
        q = torch.randn(num_new, 2 * HEADS, SIZE, generator=generator)
        k, v = torch.randn(2, num_new, HEADS, SIZE, generator=generator).unbind()
        starts = torch.tensor([0, *counts]).cumsum(0).int()
        before = [len(own) for own in keys]
        seq_lens = torch.tensor(before) + torch.tensor(counts)
        step = SimpleNamespace(num_reqs=3, block_table_tensor=pages, query_start_loc_cpu=starts)
        metadata = builder.build(step, seq_lens, lambda starts, lengths: None)
        output = torch.full_like(q, torch.nan)
        impl.forward(layer, q, k, v, kv_cache, metadata, output)
        for sequence, count in enumerate(counts):
            for number in range(count):
                at = int(starts[sequence]) + number
                keys[sequence].append(k[at])
                values[sequence].append(v[at])
                slow[sequence].insert()
                own = slow[sequence].kept.by_pattern[pattern]
                standing = torch.tensor(slow[sequence].standing(pattern))
                if positions == "slots":
                    standing = torch.arange(len(own))
                expected = scaled_dot_product_attention(
                    rotated(q[at][None], standing[-1:]).transpose(0, 1)[None],
                    rotated(torch.stack([keys[sequence][i] for i in own]), standing).transpose(
                        0, 1
                    )[None],
                    torch.stack([values[sequence][i] for i in own]).transpose(0, 1)[None],
                    enable_gqa=True,
                )[0].transpose(0, 1)
                assert torch.allclose(output[at], expected[0], atol=1e-5)
                checked += 1
    assert checked == sum(map(sum, CHUNKS))
