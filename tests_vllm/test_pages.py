"""The content of pages after many compactions, in 16 bits."""

import numpy as np
import pytest
import torch
from vllm import _custom_ops as ops
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa
from vllm.v1.kv_cache_interface import FullAttentionSpec

from lacache.integrations.vllm import cpu, rotary
from lacache.integrations.vllm.attention import MoveTensors, PageSlots, SinkTensors
from lacache.integrations.vllm.cpu import CpuPages, validate_layout
from lacache.integrations.vllm.kv_cache import LadderSpec, numbers_per_slot
from lacache.integrations.vllm.positions import OriginalPositions
from lacache.integrations.vllm.schedule_arrays import ScheduleArrays
from lacache.integrations.vllm.sub_chunks import copies_per_page, split_step
from lacache.policies import Ladder, Schedule, Streaming
from tests.integrations.vllm.slow_positions import SlowPositions

CPU = torch.device("cpu")
HEADS, SIZE, PAGE, CAPACITY, TOKENS = 2, 32, 32, 70, 2_500
LAYER, PAGES = 2, [5, 1, 3]


@pytest.fixture(autouse=True)
def rotary_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make one rotary layer the model's."""
    with set_current_vllm_config(VllmConfig()):
        layer = RotaryEmbedding(SIZE, SIZE, 4096, 1e4, True, torch.bfloat16)
    monkeypatch.setattr(rotary, "_MODEL_ROTARIES", [layer])


def ladder(positions: str) -> Schedule:
    return Ladder(span=3, overlap=1, evict_batch=1, positions=positions).schedule(6, CAPACITY)


def new_pages(schedule: Schedule, isa: str) -> CpuPages:
    extra = numbers_per_slot(copies_per_page(schedule, PAGE), PAGE, SIZE, 1)
    kv_cache = torch.zeros(8, HEADS, PAGE, 2 * SIZE + extra, dtype=torch.bfloat16)
    return CpuPages(kv_cache, SIZE, isa)


def after_all_tokens(
    schedule: Schedule, trained_length: int, isa: str, keys: torch.Tensor, values: torch.Tensor
) -> CpuPages:
    """Return the pages of a layer after a step that brings all tokens of a sequence."""
    arrays, pages = ScheduleArrays(schedule), new_pages(schedule, isa)
    is_original = schedule.positions == "original"
    original = OriginalPositions(arrays, trained_length) if is_original else None
    pattern, copies = arrays.pattern_of_layer[LAYER], copies_per_page(schedule, PAGE)
    starts, table = np.array([0, len(keys)]), np.array([PAGES])
    compactions = 0
    for one in split_step(arrays, original, np.array([0]), starts, table, PAGE):
        if one.moves is not None:
            pages.move(MoveTensors.from_numpy(one.moves, PAGE, CPU), pattern)
            compactions += 1
        if one.sinks is not None:
            pages.rotate_sinks(SinkTensors.from_numpy(one.sinks, PAGE, copies, CPU), pattern)
        new = keys[one.tokens]
        pages.save(PageSlots.from_numpy(one.copies, copies, CPU), new[one.saved])
        slots = PageSlots.from_numpy(one.slots, PAGE, CPU)
        pages.write(slots, torch.from_numpy(one.positions), new, values[one.tokens])
    assert compactions > 1_000
    return pages


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


@pytest.mark.parametrize(
    ("positions", "trained_length", "tolerance"),
    [
        ("slots", 4096, 0.0),
        ("original", 4096, 0.0),
        # Renumbered some twenty times. Each rounds once more those keys that it moves.
        ("original", 200, 0.03),
    ],
)
def test_no_drift_after_a_thousand_compactions(
    positions: str, trained_length: int, tolerance: float
) -> None:
    isa = _get_attn_isa(torch.bfloat16, PAGE, SIZE, "auto").replace("amx", "vec")
    schedule = ladder(positions)
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(TOKENS, HEADS, SIZE, generator=generator).bfloat16()
    values = torch.randn(TOKENS, HEADS, SIZE, generator=generator).bfloat16()
    pages = after_all_tokens(schedule, trained_length, isa, keys, values)
    slow = SlowPositions(schedule, trained_length)
    for _ in range(TOKENS):
        slow.insert()
    pattern = schedule.patterns[LAYER]
    kept = slow.kept.by_pattern[pattern]
    places = np.arange(len(kept))
    standing = torch.tensor(slow.standing(pattern))
    if positions == "slots":
        standing = torch.from_numpy(places)
    anew = new_pages(schedule, isa)
    slots = PageSlots.from_numpy(np.array(PAGES)[places // PAGE] * PAGE + places % PAGE, PAGE, CPU)
    anew.write(slots, standing, keys[kept], values[kept])
    assert pages.values_at(slots).equal(values[kept])
    error = pages.keys_at(slots).float() - anew.keys_at(slots).float()
    assert error.norm(dim=-1).max() <= tolerance * keys.float().norm(dim=-1).max()
    query = torch.randn(1, 2 * HEADS, SIZE, generator=generator).bfloat16()
    found = attended(pages, PAGES, query, len(kept))
    expected = attended(anew, PAGES, query, len(kept))
    assert torch.allclose(found, expected, atol=tolerance, rtol=0)
    # Keys rotated to other positions give another result.
    anew.write(slots, standing.flip(0), keys[kept], values[kept])
    other = attended(anew, PAGES, query, len(kept))
    assert not torch.allclose(found, other, atol=2 * tolerance, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [32, 64, 80, 128, 256])
def test_keys_and_values_can_be_read_back(dtype: torch.dtype, size: int) -> None:
    isa = _get_attn_isa(dtype, 128, size, "auto").replace("amx", "vec")
    validate_layout(isa, 128, size, dtype)


def test_keys_can_be_read_back_from_a_layout_without_strides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    isa = _get_attn_isa(torch.bfloat16, PAGE, SIZE, "auto").replace("amx", "vec")
    places, strides = cpu._key_places(isa, PAGE, SIZE, torch.bfloat16)
    monkeypatch.setattr(cpu, "_key_places", lambda *_: (places, None))
    validate_layout(isa, PAGE, SIZE, torch.bfloat16)
    assert strides is not None


def sequence_bytes(capacity: int, positions: str, size: int, page: int, alignment: int) -> int:
    """Return the bytes of a sequence in one layer with one KV head, in 16 bits."""
    full = FullAttentionSpec(block_size=page, num_kv_heads=1, head_size=size, dtype=torch.bfloat16)
    schedule = Streaming(positions=positions).schedule(2, capacity)
    spec = LadderSpec.from_full(full, schedule, alignment)
    assert spec.state_content_size_bytes % alignment == 0
    return spec.num_pages * spec.page_size_bytes


@pytest.mark.parametrize("size", [64, 80, 128])
def test_bytes_of_a_sequence(size: int) -> None:
    """One key and one value for each slot, and little more for the sinks' unrotated keys."""
    one_of_each = 512 * 2 * size * 2
    assert sequence_bytes(512, "slots", size, 128, 1) == one_of_each * 3 // 2
    on_cpu = sequence_bytes(512, "original", size, 128, 1)
    assert on_cpu == 512 * (2 * size + 1) * 2
    on_cuda = sequence_bytes(512, "original", size, 16, 16)
    assert on_cuda == 512 * (2 * size + 8) * 2


def test_numbers_per_slot() -> None:
    assert numbers_per_slot(0, 16, 64, 8) == 0
    assert numbers_per_slot(1, 16, 64, 8) == 8
    assert numbers_per_slot(2, 16, 64, 8) == 8
    assert numbers_per_slot(3, 16, 64, 8) == 16
    assert numbers_per_slot(2, 16, 80, 8) == 16
    assert numbers_per_slot(16, 16, 64, 8) == 64
    assert numbers_per_slot(15, 16, 64, 8) == 64
