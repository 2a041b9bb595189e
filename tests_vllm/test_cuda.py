"""What the CUDA backend does around FlashAttention, with a stand-in for it in plain torch."""

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
from lacache.integrations.vllm.arrays import ScheduleArrays
from lacache.integrations.vllm.cuda import LadderCudaImpl
from lacache.integrations.vllm.step import ready, rows_of_layers
from lacache.policies import Ladder
from lacache.policies.kept import kept_after

HEADS, SIZE, PAGE = 2, 32, 16
POLICY = Ladder(capacity=40, span=3, overlap=1, evict_batch=5)
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
    for row, length in enumerate(seqused_k.tolist()):
        start, stop = cu_seqlens_q[row : row + 2].tolist()
        assert stop - start <= max_seqlen_q
        assert length <= max_seqlen_k
        keys = k[block_table[row]].flatten(0, 1)[:length]
        values = v[block_table[row]].flatten(0, 1)[:length]
        hidden = torch.ones(stop - start, length, dtype=torch.bool).tril(length - (stop - start))
        out[start:stop] = scaled_dot_product_attention(
            *(states.transpose(0, 1)[None] for states in (q[start:stop], keys, values)),
            attn_mask=hidden,
            scale=softmax_scale,
            enable_gqa=True,
        )[0].transpose(0, 1)


def turned(states: Tensor, positions: Tensor) -> Tensor:
    """Rotary positions, written out."""
    angles = positions[:, None].double() / 1e4 ** (torch.arange(0, SIZE, 2) / SIZE)
    cos, sin = angles.cos()[:, None].float(), angles.sin()[:, None].float()
    one, other = states.chunk(2, dim=-1)
    return torch.cat([one * cos - other * sin, other * cos + one * sin], dim=-1)


def test_rounds_attend_to_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    with set_current_vllm_config(VllmConfig()):
        table = RotaryEmbedding(SIZE, SIZE, 4096, 1e4, True, torch.float32)
    monkeypatch.setattr(rotary, "_TABLES", [table])
    monkeypatch.setattr(fa_utils, "flash_attn_varlen_func", stand_in, raising=False)
    generator = torch.Generator().manual_seed(0)
    schedule = POLICY.bind(6)
    arrays = ScheduleArrays(schedule)
    impl = LadderCudaImpl.__new__(LadderCudaImpl)
    same = {"alibi_slopes": None, "logits_soft_cap": 0, "sinks": None, "sliding_window": (-1, -1)}
    impl.__dict__ |= {"head_size": SIZE, "scale": SIZE**-0.5, "vllm_flash_attn_version": 2} | same
    pages = torch.tensor([[4, 1, 7], [2, 9, 3], [8, 5, 6]], dtype=torch.int32)
    kv_cache = torch.zeros(10, HEADS, PAGE, 3 * SIZE)
    layer = SimpleNamespace(layer_name="model.layers.4.self_attn.attn")
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
        rows = rows_of_layers(arrays, [layer.layer_name])
        plan = ready(arrays, rows, step, seq_lens, PAGE, lambda starts, lengths: None)
        output = torch.full_like(q, torch.nan)
        impl.forward(layer, q, k, v, kv_cache, plan, output)
        for row, count in enumerate(counts):
            for number in range(count):
                at = int(starts[row]) + number
                keys[row].append(k[at])
                values[row].append(v[at])
                kept = kept_after(schedule, before[row] + number + 1)
                own = kept.by_pattern[schedule.patterns[4]]
                slots = torch.arange(len(own))
                expected = scaled_dot_product_attention(
                    turned(q[at][None], slots[-1:]).transpose(0, 1)[None],
                    turned(torch.stack([keys[row][i] for i in own]), slots).transpose(0, 1)[None],
                    torch.stack([values[row][i] for i in own]).transpose(0, 1)[None],
                    enable_gqa=True,
                )[0].transpose(0, 1)
                assert torch.allclose(output[at], expected[0], atol=1e-5)
                checked += 1
    assert checked == sum(map(sum, CHUNKS))
