"""The content of pages after many compactions, in 16 bits."""

import numpy as np
import pytest
import torch
from vllm import _custom_ops as ops
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

from lacache.integrations.vllm import rotary
from lacache.integrations.vllm.attention import PageSlots, SlotMoves
from lacache.integrations.vllm.cpu import CpuPages, validate_value_layout
from lacache.integrations.vllm.sub_chunks import ScheduleArrays, split_step
from lacache.policies import Ladder, kept_after

CPU = torch.device("cpu")
HEADS, SIZE, PAGE, CAPACITY, TOKENS = 2, 32, 32, 70, 2_500
SCHEDULE = Ladder(span=3, overlap=1, evict_batch=1).schedule(6, CAPACITY)


@pytest.fixture(autouse=True)
def rotary_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make one rotary layer the model's."""
    with set_current_vllm_config(VllmConfig()):
        layer = RotaryEmbedding(SIZE, SIZE, 4096, 1e4, True, torch.bfloat16)
    monkeypatch.setattr(rotary, "_MODEL_ROTARIES", [layer])


def new_pages(isa: str) -> CpuPages:
    return CpuPages(torch.zeros(8, HEADS, PAGE, 3 * SIZE, dtype=torch.bfloat16), isa)


def attended(pages: CpuPages, held: list[int], query: torch.Tensor, length: int) -> torch.Tensor:
    """Attend from one token to a sequence's slots, with vLLM's own kernel."""
    starts = torch.tensor([0, 1], dtype=torch.int32)
    lengths = torch.tensor([length], dtype=torch.int32)
    shared = {"query_start_loc": starts, "seq_lens": lengths, "causal": True}
    plan = ops.cpu_attn_get_scheduler_metadata(
        num_reqs=1,
        num_heads=2 * HEADS,
        num_kv_heads=HEADS,
        head_dim=SIZE,
        dtype=query.dtype,
        sliding_window_size=-1,
        isa=pages._isa,
        enable_kv_split=False,
        kv_cache_dtype="auto",
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
        block_table=torch.tensor([held], dtype=torch.int32),
        softcap=0,
        scheduler_metadata=plan,
        s_aux=None,
        kv_cache_dtype="auto",
        **shared,
    )
    return output


def test_no_drift_after_a_thousand_compactions() -> None:
    isa = _get_attn_isa(torch.bfloat16, PAGE, SIZE, "auto").replace("amx", "vec")
    arrays = ScheduleArrays(SCHEDULE)
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(TOKENS, HEADS, SIZE, generator=generator).bfloat16()
    values = torch.randn(TOKENS, HEADS, SIZE, generator=generator).bfloat16()
    layer, held = 2, [5, 1, 3]
    pages = new_pages(isa)
    compactions = 0
    table = np.array([held])
    for sub_chunk in split_step(arrays, np.array([0]), np.array([0, TOKENS]), table, PAGE):
        if sub_chunk.moves is not None:
            pages.move(
                SlotMoves.from_numpy(sub_chunk.moves, PAGE, CPU), arrays.pattern_of_layer[layer]
            )
            compactions += 1
        positions = torch.from_numpy(sub_chunk.positions)
        slots = PageSlots.from_numpy(sub_chunk.slots, PAGE, CPU)
        pages.write(slots, positions, keys[sub_chunk.tokens], values[sub_chunk.tokens])
    assert compactions > 1_000
    kept = kept_after(SCHEDULE, TOKENS).by_pattern[SCHEDULE.patterns[layer]]
    anew = new_pages(isa)
    places = np.arange(len(kept))
    slots = PageSlots.from_numpy(np.array(held)[places // PAGE] * PAGE + places % PAGE, PAGE, CPU)
    anew.write(slots, torch.from_numpy(places), keys[kept], values[kept])
    assert pages.unrotated_keys[slots.page, :, slots.offset].equal(keys[kept])
    assert pages.values_at(slots).equal(values[kept])
    query = torch.randn(1, 2 * HEADS, SIZE, generator=generator).bfloat16()
    found = attended(pages, held, query, len(kept))
    assert found.equal(attended(anew, held, query, len(kept)))
    # Keys rotated to other positions give another result.
    flipped = torch.from_numpy(places).flip(0)
    anew.write(slots, flipped, keys[kept], values[kept])
    assert not found.equal(attended(anew, held, query, len(kept)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [32, 64, 80, 128, 256])
def test_values_can_be_read_back(dtype: torch.dtype, size: int) -> None:
    with set_current_vllm_config(VllmConfig()):
        rotary._MODEL_ROTARIES[0] = RotaryEmbedding(size, size, 4096, 1e4, True, dtype)
    isa = _get_attn_isa(dtype, 128, size, "auto").replace("amx", "vec")
    validate_value_layout(isa, 128, size, dtype)
