"""The content of pages after many compactions, in 16 bits, and their bytes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm import _custom_ops as ops
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding
from vllm.model_executor.layers.rotary_embedding.yarn_scaling_rope import (
    YaRNScalingRotaryEmbedding,
)
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa
from vllm.v1.kv_cache_interface import FullAttentionSpec

from lacache.integrations.vllm import attention, cpu, rotary
from lacache.integrations.vllm.attention import attend_by_sub_chunk
from lacache.integrations.vllm.cpu import CpuPages, validate_layout
from lacache.integrations.vllm.kv_cache import PAGES_PER_BLOCK, BoundedSpec, share_pool
from lacache.integrations.vllm.metadata import MetadataBuilder
from lacache.integrations.vllm.rotary import rotate, rotate_by
from lacache.integrations.vllm.worker_heads import WorkerHeads
from lacache.policies import BoundGroup, ModelShape, parse_policy
from tests.integrations.vllm.slow_positions import SlowPositions

HEADS, SIZE, PAGE, CAPACITY, TOKENS, STEP = 2, 32, 32, 110, 1_600, 90
SHARD = dict.fromkeys(range(4), range(HEADS))
NAMES = [f"model.layers.{layer}.self_attn.attn" for layer in SHARD]
ISA = _get_attn_isa(torch.bfloat16, PAGE, SIZE, "auto").replace("amx", "vec")
States = dict[tuple[int, int], Tensor]
"""Keys or values of all tokens [TOKENS, SIZE], by layer and KV head."""


@pytest.fixture(autouse=True)
def rotary_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make one rotary layer the model's."""
    with set_current_vllm_config(VllmConfig()):
        layer = RotaryEmbedding(SIZE, SIZE, 4096, 1e4, True, torch.bfloat16)
    monkeypatch.setattr(rotary, "_MODEL_ROTARIES", [layer])


def bound(text: str, capacity: int = CAPACITY) -> tuple[BoundGroup, ...]:
    return parse_policy(text).bind(ModelShape((HEADS,) * len(SHARD)), capacity)


def new_pages(num_pages: int) -> CpuPages:
    return CpuPages(torch.zeros(num_pages * 2 * PAGE * SIZE).bfloat16(), SIZE, PAGE, ISA)


def after_all_tokens(heads: WorkerHeads, blocks: Tensor, keys: States, values: States) -> CpuPages:
    """Return the pool after the steps of one sequence, in which all layers run in turn."""
    pages = new_pages(PAGES_PER_BLOCK * (1 + len(blocks)))
    builder = MetadataBuilder(heads, NAMES, PAGES_PER_BLOCK)
    compactions = 0
    for seen in range(0, TOKENS, STEP):
        own = slice(seen, min(TOKENS, seen + STEP))
        num_new = own.stop - seen
        step: Any = SimpleNamespace(
            num_reqs=1,
            block_table_tensor=blocks[None],
            query_start_loc_cpu=torch.tensor([0, num_new], dtype=torch.int32),
        )
        metadata = builder.build(step, torch.tensor([own.stop]), lambda starts, lengths: None)
        compactions += sum(one.layers[0].moves is not None for one in metadata.sub_chunks)
        query = torch.zeros(num_new, HEADS, SIZE).bfloat16()
        for layer, name in enumerate(NAMES):
            key, value = (
                torch.stack([states[layer, head][own] for head in range(HEADS)], dim=1)
                for states in (keys, values)
            )
            attend_by_sub_chunk(
                metadata, name, pages, lambda *_: None, query, key, value, torch.empty_like(query)
            )
    assert compactions > 1_000
    return pages


def attended(pages: CpuPages, table: Tensor, query: Tensor, length: int) -> Tensor:
    """Attend from one token to the slots of a KV head, with vLLM's own kernel."""
    shared = {
        "query_start_loc": torch.tensor([0, 1], dtype=torch.int32),
        "seq_lens": torch.tensor([length], dtype=torch.int32),
        "causal": True,
        "kv_cache_dtype": "auto",
    }
    plan = ops.cpu_attn_get_scheduler_metadata(
        num_reqs=1,
        num_heads=query.shape[1],
        num_kv_heads=1,
        head_dim=SIZE,
        dtype=query.dtype,
        sliding_window_size=-1,
        isa=ISA,
        enable_kv_split=False,
        **shared,
    )
    output = torch.empty_like(query)
    ops.cpu_attention_with_kv_cache(
        query=query,
        key_cache=pages.rotated_keys,
        value_cache=pages.values,
        output=output,
        scale=SIZE**-0.5,
        alibi_slopes=None,
        sliding_window=-1,
        block_table=table[None].int(),
        softcap=0,
        scheduler_metadata=plan,
        s_aux=None,
        **shared,
    )
    return output


@pytest.mark.parametrize(
    "policy",
    [
        "ladder:span=2:overlap=1:evict_batch=1",
        # The history and two tiers of windows, which shrink for it.
        "retrieval:heads=1.0+3.1/0.1+3.0:window=0.5:evict_batch=1",
    ],
)
@pytest.mark.parametrize(
    ("positions", "trained_length", "tolerance"),
    [
        ("slots", 4096, 0.0),
        ("original", 4096, 0.0),
        # Renumbered up to fifty times. Each rounds once more those keys that it moves.
        ("original", 300, 0.03),
    ],
)
def test_no_drift_after_a_thousand_compactions(
    policy: str,
    positions: str,
    trained_length: int,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Fewer than a head moves.
    monkeypatch.setattr(attention, "_SLOTS_PER_COPY", 50)
    groups = bound(f"{policy}:positions={positions}")
    heads = WorkerHeads(groups, SHARD, PAGE, STEP, trained_length)
    generator = torch.Generator().manual_seed(0)
    blocks = 1 + torch.randperm(-(-heads.num_pages // PAGES_PER_BLOCK), generator=generator)
    pairs = [(layer, head) for layer in SHARD for head in range(HEADS)]
    shape = (2, len(pairs), TOKENS, SIZE)
    keys, values = (
        dict(zip(pairs, states, strict=True))
        for states in torch.randn(shape, generator=generator).bfloat16()
    )
    pages = after_all_tokens(heads, blocks, keys, values)
    slow = SlowPositions([group.schedule for group in groups], trained_length)
    for _ in range(TOKENS):
        slow.insert()
    held = (blocks[:, None] * PAGES_PER_BLOCK + torch.arange(PAGES_PER_BLOCK)).flatten()
    anew = new_pages(PAGES_PER_BLOCK * (1 + len(blocks)))
    for number, (layer, head) in enumerate(pairs):
        index = next(i for i, g in enumerate(groups) if head in g.heads.get(layer, ()))
        pattern = groups[index].pattern(layer)
        kept = slow.kept[index].by_pattern[pattern]
        places = torch.arange(len(kept))
        standing = torch.tensor(slow.standing(index, pattern))
        if positions == "slots":
            standing = places
        table = held[torch.from_numpy(heads.tables[number])]
        slots = table[places // PAGE] * PAGE + places % PAGE
        its_keys, its_values = keys[layer, head][kept], values[layer, head][kept]
        anew.write(slots, standing, its_keys.clone(), its_values)
        assert pages.values_at(slots).equal(its_values)
        error = pages.keys_at(slots).float() - anew.keys_at(slots).float()
        assert error.norm(dim=-1).max() <= tolerance * its_keys.float().norm(dim=-1).max()
        query = torch.randn(1, 2, SIZE, generator=generator).bfloat16()
        found = attended(pages, table, query, len(kept))
        expected = attended(anew, table, query, len(kept))
        assert torch.allclose(found, expected, atol=tolerance, rtol=0)
        # Keys rotated to other positions give another result.
        anew.write(slots, standing.flip(0), its_keys.clone(), its_values)
        other = attended(anew, table, query, len(kept))
        assert not torch.allclose(found, other, atol=2 * tolerance, rtol=0)


@pytest.mark.parametrize("kind", ["plain", "partial", "gpt-j", "yarn"])
def test_rotated_keys_are_rotated_by_distances(kind: str) -> None:
    """By either sign, in one call, as far as the model has positions."""
    rotary_size, is_neox = SIZE // 2 if kind == "partial" else SIZE, kind != "gpt-j"
    with set_current_vllm_config(VllmConfig()):
        if kind == "yarn":
            layer = YaRNScalingRotaryEmbedding(SIZE, SIZE, 64, 1e4, True, 4.0, torch.float32)
        else:
            layer = RotaryEmbedding(SIZE, rotary_size, 256, 1e4, is_neox, torch.float32)
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(500, SIZE, generator=generator)
    before, after = torch.randint(0, 256, (2, 500), generator=generator)
    before[:2], after[:2] = torch.tensor([0, 255]), torch.tensor([255, 0])
    rotated, expected = keys.clone(), keys.clone()
    rotate(layer, rotated, before)
    rotate(layer, expected, after)
    unchanged = rotated.clone()
    assert torch.allclose(rotate_by(layer, rotated, after - before), expected, atol=2e-5)
    assert rotated.equal(unchanged)
    assert not torch.allclose(rotate_by(layer, rotated, before - after), expected, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [32, 64, 80, 128, 256])
def test_keys_and_values_can_be_read_back(dtype: torch.dtype, size: int) -> None:
    isa = _get_attn_isa(dtype, 128, size, "auto").replace("amx", "vec")
    validate_layout(isa, 128, size, dtype)


def test_keys_can_be_read_back_from_a_layout_without_strides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places, strides = cpu._key_places(ISA, PAGE, SIZE, torch.bfloat16)
    monkeypatch.setattr(cpu, "_key_places", lambda *_: (places, None))
    validate_layout(ISA, PAGE, SIZE, torch.bfloat16)
    assert strides is not None


def sequence_bytes(policy: str, capacity: int, size: int, page: int) -> int:
    """Return the bytes of a sequence in all layers, in 16 bits."""
    heads = WorkerHeads(bound(policy, capacity), SHARD, page, 512, 4096)
    full = FullAttentionSpec(block_size=page, num_kv_heads=1, head_size=size, dtype=torch.bfloat16)
    spec = BoundedSpec.from_full(full, page, heads.num_pages)
    return spec.max_memory_usage_bytes(VllmConfig())


@pytest.mark.parametrize("size", [64, 80, 128])
@pytest.mark.parametrize("page", [16, 128])
def test_bytes_of_a_sequence(size: int, page: int) -> None:
    """One key and one value for each slot, and pages of unrotated keys, in whole blocks."""
    slots = 512 * HEADS * len(SHARD)
    block = PAGES_PER_BLOCK * page
    # An unrotated key takes half of a slot.
    by_slots = sequence_bytes("streaming:positions=slots", 512, size, page)
    assert by_slots == slots * 3 // 2 * 2 * size * 2
    # The sinks'.
    original = sequence_bytes("streaming:sinks=4", 512, size, page)
    assert 0 <= original // (2 * size * 2) - slots - 2 * HEADS * len(SHARD) < block
    # Windows give their pages to the history.
    split = sequence_bytes("retrieval:heads=1.0+3.1/0.1+3.0:window=0.5", 512, size, page)
    assert slots * 2 * size * 2 < split < 1.3 * slots * 2 * size * 2


def test_all_layers_share_the_pool_of_the_first() -> None:
    layers: dict[str, Any] = {name: Attention.__new__(Attention) for name in NAMES}
    layers["model.layers.0.mlp"] = other = SimpleNamespace()
    for name in NAMES:
        layers[name].kv_sharing_target_layer_name = None
    share_pool(layers)
    targets = [layers[name].kv_sharing_target_layer_name for name in NAMES]
    assert targets == [None, NAMES[0], NAMES[0], NAMES[0]]
    assert not vars(other)
