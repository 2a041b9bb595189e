"""Keys and values in fewer bits against a slow twin, and against those of the model's own type."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lacache.cache.codecs import Codec, HadamardCodec, PlainCodec, find_codecs, hadamard
from lacache.cache.static import allocation
from lacache.cache.static.layout import CacheLayout
from lacache.cache.static.storage import Buffer, LayerStates, fixed_buffer
from lacache.common.validation import KV_DTYPES
from lacache.engine.runner import Runner
from lacache.errors import ConfigError
from lacache.models.model_info import model_info
from lacache.policies import Group, Groups, Ladder, Streaming
from tests.cache.static.slow_codec import (
    SlowCodec,
    slow_group,
    slow_integers,
    slow_matrix,
    slow_scales,
)
from tests.cache.tiny_models import random_ids, tiny_model
from tests.policies.sized import bind, bind_to

CPU = torch.device("cpu")
LADDER = (24, Ladder(span=2, overlap=0, sinks=2, evict_batch=3))
AT_SLOTS = (24, Ladder(span=2, overlap=0, sinks=2, evict_batch=3, positions="slots"))
NAMES = sorted(KV_DTYPES)
MODEL_TYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (2, 6, 8, 64, 80, 96)
ROWS, HEADS, SLOTS, SIZE = 2, 3, 7, 8

names = pytest.mark.parametrize("name", NAMES)


def codec_of(
    name: str, dtype: torch.dtype = torch.float32, size: int = SIZE, *, centered: bool = False
) -> HadamardCodec:
    center = 50 * torch.randn(HEADS, size, generator=torch.Generator().manual_seed(5))
    codec = find_codecs(name, dtype, CPU, center if centered else None)[0]
    assert isinstance(codec, HadamardCodec)
    return codec


def make(name: str | None, dtype: torch.dtype = torch.float32) -> Buffer:
    return fixed_buffer((ROWS, HEADS, SLOTS, SIZE), find_codecs(name, dtype)[0], CPU)


def states_of(
    seed: int, num_new: int, dtype: torch.dtype, *, rows: int = 1, size: int = SIZE
) -> Tensor:
    """Random [rows, H, N, D]: tokens from very small to large, some numbers among them 0."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, HEADS, num_new, size)
    states = torch.randn(shape, generator=generator)
    states *= 10.0 ** torch.randint(-6, 4, (*shape[:3], 1), generator=generator)
    return (states * (torch.rand(shape, generator=generator) > 0.1)).to(dtype)


def copies(buffer: Buffer) -> list[Tensor]:
    return [stored.view(ROWS, HEADS, SLOTS, -1).clone() for stored in buffer.storage.tensors]


def rounding_of(states: Tensor, dtype: torch.dtype) -> Tensor:
    """Most that a number of the type is off, if it should be `states`."""
    about = torch.finfo(dtype)
    return about.eps * states.abs() + about.eps * about.tiny


drawn = given(
    name=st.sampled_from(NAMES),
    dtype=st.sampled_from(MODEL_TYPES),
    size=st.sampled_from(SIZES),
    centered=st.booleans(),
    seed=st.integers(0, 10**6),
)


@pytest.mark.parametrize("size", [1, 2, 16, 32])
def test_the_transform_is_that_of_its_definition(size: int) -> None:
    torch.testing.assert_close(hadamard(size).double() * size**-0.5, slow_matrix(size))


@settings(deadline=None, max_examples=60)
@drawn
def test_each_transformed_number_becomes_the_nearest_that_can_be_stored(
    name: str, dtype: torch.dtype, size: int, centered: bool, seed: int
) -> None:
    codec = codec_of(name, dtype, size, centered=centered)
    states = states_of(seed, 4, dtype, size=size)
    packed, scales = codec.encode(states)
    assert [(t.dtype, t.shape[-1]) for t in (packed, scales)] == [*codec.parts(size)]

    end = 2 ** (codec.bits - 1)
    center = torch.zeros(()) if codec.center is None else codec.center.double()
    exact = states.double() - center
    transformed = exact @ slow_matrix(size)
    integers, step = slow_integers(packed, codec.bits), slow_scales(scales, size)
    can_be = torch.arange(-end, end) * step[..., None]
    distance = (can_be - transformed[..., None]).abs().min(dim=-1).values
    # What is subtracted and divided is rounded too, which can tip what lies half-way.
    rounding = 1e-6 * (exact.abs() + center.abs()).amax(dim=-1, keepdim=True) + 1e-30
    assert ((integers * step - transformed).abs() <= distance * (1 + 1e-4) + rounding).all()

    grouped = transformed.unflatten(-1, (-1, slow_group(size, codec.bits)))
    farthest = grouped.abs().amax(dim=-1)
    slack = torch.finfo(torch.bfloat16).eps * farthest + rounding
    assert ((scales.double().abs() * end - farthest).abs() <= slack + 1e-35).all()

    decoded = codec.decode((packed, scales))
    assert decoded.dtype == dtype
    slow = (integers * step) @ slow_matrix(size) + center
    largest = (slow.abs() + center.abs()).amax(dim=-1, keepdim=True)
    assert ((decoded.double() - slow).abs() <= rounding_of(slow, dtype) + 1e-6 * largest).all()


@settings(deadline=None, max_examples=40)
@drawn
def test_errors_are_as_documented(
    name: str, dtype: torch.dtype, size: int, centered: bool, seed: int
) -> None:
    codec = codec_of(name, dtype, size, centered=centered)
    states = states_of(seed, SLOTS, dtype, size=size)
    error = (codec.decode(codec.encode(states)).double() - states.double()) @ slow_matrix(size)
    center = torch.zeros(()) if codec.center is None else codec.center.double()
    transformed = (states.double() - center) @ slow_matrix(size)
    group = slow_group(size, codec.bits)
    farthest = transformed.unflatten(-1, (-1, group)).abs().amax(dim=-1)
    step = (farthest / 2 ** (codec.bits - 1)).repeat_interleave(group, dim=-1)
    # The model's type rounds the numbers of a block before they are transformed back.
    largest = (states.double().abs() + center.abs()).amax(dim=-1, keepdim=True)
    rounding = rounding_of(largest, dtype) * 8 + 1e-5 * largest
    assert (error.abs() <= 1.52 * step + rounding).all()
    assert (error.abs().mean() <= 0.55 * step.mean() + rounding.mean()).all()


@settings(deadline=None, max_examples=30)
@drawn
def test_what_is_stored_and_read_does_not_depend_on_what_is_beside_it(
    name: str, dtype: torch.dtype, size: int, centered: bool, seed: int
) -> None:
    codec = codec_of(name, dtype, size, centered=centered)
    states = states_of(seed, 5, dtype, size=size)
    together = codec.encode(states)
    decoded = codec.decode(together)
    for n in range(5):
        one = slice(n, n + 1)
        alone = codec.encode(states[:, :, one])
        assert all(torch.equal(a, b[:, :, one]) for a, b in zip(alone, together, strict=True))
        assert torch.equal(codec.decode(alone), decoded[:, :, one])


@names
@pytest.mark.parametrize("dtype", MODEL_TYPES)
def test_zeros_stay_zeros(name: str, dtype: torch.dtype) -> None:
    buffer = make(name, dtype)
    assert (buffer.all() == 0).all()
    buffer.write(0, 0, torch.zeros(1, HEADS, SLOTS, SIZE, dtype=dtype))
    assert (buffer.all() == 0).all()


@names
def test_a_cleared_slot_around_a_center_is_the_center(name: str) -> None:
    codec = codec_of(name, centered=True)
    assert codec.center is not None
    buffer = fixed_buffer((ROWS, HEADS, SLOTS, SIZE), codec, CPU)
    assert torch.equal(buffer.all(), codec.center.expand(ROWS, HEADS, SLOTS, SIZE))


@names
@pytest.mark.parametrize("size", [8, 96])
def test_a_state_that_is_no_number_stays_none(name: str, size: int) -> None:
    codec = find_codecs(name, torch.float32)[1]
    states = torch.ones(1, HEADS, 3, size)
    states[0, 1, 0, 2], states[0, 1, 1, 2] = float("nan"), float("inf")
    decoded = codec.decode(codec.encode(states))
    group = slow_group(size, KV_DTYPES[name])
    assert not decoded[0, 1, :2, :group].isfinite().any()
    torch.testing.assert_close(decoded[0, 1, 2], states[0, 1, 2], rtol=0.02, atol=0)
    torch.testing.assert_close(decoded[0, 0], states[0, 0], rtol=0.02, atol=0)


@settings(deadline=None, max_examples=60)
@drawn
def test_what_was_read_is_stored_as_it_was(
    name: str, dtype: torch.dtype, size: int, centered: bool, seed: int
) -> None:
    """So a key that does not move keeps its value, also in a restored sequence."""
    codec = codec_of(name, dtype, size, centered=centered)
    states = states_of(seed, 5, torch.float32, size=size)
    if centered:  # not so small that float32 loses them beside the center
        states /= states.abs().amax(dim=-1, keepdim=True).clamp_min(1e-9)
        states += 0 if codec.center is None else codec.center
    stored = codec.encode(states.to(dtype))
    again = codec.encode(codec.decode_wide(stored))
    assert all(torch.equal(a, b) for a, b in zip(stored, again, strict=True))
    assert torch.equal(codec.decode(stored), codec.decode_wide(stored).to(dtype))


@names
def test_outliers_cost_the_other_numbers_little(name: str) -> None:
    """An outlier of a block is spread over it, and one that all keys share is the center's."""
    states = states_of(1, SLOTS, torch.float32, size=64)
    states /= states.abs().mean(dim=-1, keepdim=True)
    center = torch.zeros(HEADS, 64)
    center[:, 5] = 300
    end = 2 ** (KV_DTYPES[name] - 1)

    def error(codec: Codec, outlier: float) -> float:
        given = states.clone()
        given[..., 5] += outlier
        return float((codec.decode(codec.encode(given)) - given).square().mean().sqrt())

    plain, centered = (find_codecs(name, torch.float32, CPU, c)[0] for c in (None, center))
    without = error(plain, 0)
    assert error(plain, 300) < 300 / end / 12**0.5 / 2
    assert error(centered, 300) < 1.2 * without


@names
def test_a_slot_of_each_head_equals_a_write_in_each_active_batch_slot(name: str) -> None:
    fast, slow = make(name), make(name)
    for buffer in (fast, slow):
        for row in range(ROWS):
            buffer.write(row, 0, states_of(row, SLOTS, torch.float32))
    new = states_of(9, 1, torch.float32, rows=ROWS)
    first_slots = SLOTS * torch.arange(ROWS * HEADS).view(ROWS, HEADS)
    rows = first_slots + torch.tensor([[4], [6]])
    LayerStates(fast.storage, fast.codec).write(rows, torch.tensor([False, True]), new)
    slow.write(1, 6, new[1:2])
    assert torch.equal(fast.at(rows[..., None])[1:], slow.read(1, 7, 6))
    for one, other in zip(copies(fast), copies(slow), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", [None, *NAMES])
def test_slots_are_copied_bit_for_bit(name: str | None) -> None:
    buffer, other = make(name), make(name)
    buffer.write(0, 0, states_of(1, SLOTS, torch.float32))
    other.write(0, 0, states_of(2, SLOTS, torch.float32))
    before, theirs = copies(buffer), copies(other)

    buffer.copy_slots(0, 2, 5, other)
    for now, mine, from_other in zip(copies(buffer), before, theirs, strict=True):
        assert torch.equal(now[0, :, 2:5], from_other[0, :, 2:5])
        assert torch.equal(now[0, :, [0, 1, 5, 6]], mine[0, :, [0, 1, 5, 6]])

    before = copies(buffer)
    buffer.fork(0, 1, 4)
    for now, mine in zip(copies(buffer), before, strict=True):
        assert torch.equal(now[1, :, :4], mine[0, :, :4])
        assert torch.equal(now[1, :, 4:], mine[1, :, 4:])

    assert torch.equal(buffer.read(0, 6, 2), buffer.read(0, SLOTS)[:, :, 2:6])


SIZED = {
    "ladder": LADDER,
    "heads apart": (
        None,
        Groups(
            (
                Group(Streaming(sinks=2, evict_batch=3), ((0, 1), 3), 40),
                Group(Streaming(sinks=2, evict_batch=3), ((0, 0), 1, 2, 4), 24),
            )
        ),
    ),
}
HYBRID_LADDER = (24, Ladder(span=2, overlap=1, sinks=2, evict_batch=3))


@pytest.mark.parametrize("name", [None, *NAMES])
@pytest.mark.parametrize(
    ("family", "sized"),
    [
        ("llama", SIZED["ladder"]),
        ("llama", SIZED["heads apart"]),
        ("smollm3", SIZED["ladder"]),
        ("gemma3", HYBRID_LADDER),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_memory_is_known_before_it_is_there(
    family: str, sized: Any, dtype: torch.dtype, name: str | None
) -> None:
    tiny = tiny_model(family).to(dtype)
    runner = Runner(tiny, bind_to(tiny, sized), 3, None, name)
    assert runner.layout.bytes_per_sequence * 3 == runner.cache.num_bytes
    rings = [buffer for r in runner.cache.rings.values() for buffer in (r.keys, r.values)]
    assert all(type(buffer.codec) is PlainCodec for buffer in rings)
    kind = PlainCodec if name is None else HadamardCodec
    assert all(
        type(buffer.codec) is kind
        for heads in runner.cache.all_kv_heads()
        for buffer in heads.buffers
    )


@pytest.mark.parametrize(("name", "stored"), [("int8", 8 + 2), ("int4", 4 + 2)])
def test_numbers_of_sixteen_bits_become_fewer_and_a_scale(name: str, stored: int) -> None:
    info = model_info(tiny_model("llama").to(torch.bfloat16))
    numbers = 5 * 2 * 24 * 3  # layers, KV heads, slots; keys twice and values
    assert CacheLayout(info, bind(AT_SLOTS, info.num_heads)).bytes_per_sequence == numbers * 8 * 2
    narrow = CacheLayout(info, bind(AT_SLOTS, info.num_heads), name)
    assert narrow.bytes_per_sequence == numbers * stored


@pytest.mark.parametrize(
    ("name", "size", "stored"),
    [
        ("int8", 64, 64 + 2),
        ("int8", 7, 7 + 2),
        ("int4", 64, 32 + 4),
        ("int4", 128, 64 + 8),
        ("int4", 80, 40 + 10),
        ("int4", 40, 20 + 2),
    ],
)
def test_bytes_of_a_vector(name: str, size: int, stored: int) -> None:
    for codec in find_codecs(name, torch.float32):
        assert codec.vector_bytes(size) == stored


def test_odd_sizes_are_refused_in_four_bits() -> None:
    with pytest.raises(ConfigError, match=r"int4.*heads of 7 numbers are odd; try .*'int8'"):
        find_codecs("int4", torch.float32)[1].vector_bytes(7)


@pytest.mark.parametrize("name", ["fp4", "float8_e4m3fn", "torch.int8", "", torch.int8, ["int8"]])
def test_other_types_are_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"kv_dtype=.* must be None.*int8, int4; try 'int8'"):
        CacheLayout(model_info(tiny_model("llama")), bind(LADDER, (2,) * 5), name)


def run(runner: Runner, num_tokens: int, *, row: int = 1) -> Tensor:
    """Logits [N, V] of a text read in part and then given step by step."""
    ids = random_ids(num_tokens)[0]
    logits, start = [], 0
    while start < 40:
        stop = start + min(7, 40 - start, runner.cache.sequences[row].room())
        logits.append(runner.prefill(row, ids[start:stop]))
        start = stop
    for token in ids[start:].tolist():
        given = [0] * len(runner.cache.sequences)
        given[row] = token
        logits.append(runner.decode(given, [row])[row])
    return torch.stack(logits)


@pytest.mark.parametrize(("name", "most"), [("int8", 0.06), ("int4", 0.6)])
@pytest.mark.parametrize("sized", SIZED.values(), ids=SIZED.keys())
def test_logits_stay_near_those_of_the_models_own_type(name: str, most: float, sized: Any) -> None:
    model = tiny_model("llama")
    exact = run(Runner(model, bind_to(model, sized), 2, None), 100)
    runner = Runner(model, bind_to(model, sized), 2, None, name)
    coarse = run(runner, 100)
    assert runner.cache.sequences[1].groups[0].num_compactions > 10
    error = (coarse - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert 0 < error.mean() < most
    # Nor do they drift away.
    assert error[-20:].mean() < most


@names
@pytest.mark.parametrize("sized", SIZED.values(), ids=SIZED.keys())
def test_a_run_is_that_of_states_made_the_nearest(
    name: str, sized: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    fast = run(Runner(model, bind_to(model, sized), 2, None, name), 70)

    def find_slow(*given: Any) -> tuple[Codec, Codec]:
        keys, values = find_codecs(*given)
        assert isinstance(keys, HadamardCodec)
        assert isinstance(values, HadamardCodec)
        return SlowCodec(keys), SlowCodec(values)

    monkeypatch.setattr(allocation, "find_codecs", find_slow)
    slow = Runner(model, bind_to(model, sized), 2, None, name)
    assert type(slow.cache.kv_heads[0][0].keys.codec) is SlowCodec
    torch.testing.assert_close(fast, run(slow, 70), rtol=1e-4, atol=1e-4)


@names
def test_compactions_do_not_wear_out_what_is_stored(name: str) -> None:
    """The sinks are moved and rotated again and again, always from unrotated keys."""
    runner = Runner(tiny_model("llama"), bind(LADDER, (2,) * 5), 1, None, name)
    run(runner, 41, row=0)
    heads = runner.cache.kv_heads[0][0]
    kept = [heads.values, heads.unrotated_keys]
    before = [t[:, :2].clone() for buffer in kept for t in buffer.tensors(0)]
    compactions = runner.cache.sequences[0].groups[0].num_compactions
    for token in random_ids(60, seed=1)[0].tolist():
        runner.decode([token], [0])
    assert runner.cache.sequences[0].groups[0].num_compactions > compactions + 10
    after = [t[:, :2] for buffer in kept for t in buffer.tensors(0)]
    for one, other in zip(after, before, strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_steps_are_compiled_once() -> None:
    name = "int4"
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model = tiny_model("llama")
    compiled = Runner(model, bind_to(model, LADDER), 2, backend, name)
    logits = run(compiled, 100)
    assert compiled.cache.sequences[1].groups[0].num_compactions > 10
    assert len(graphs) == 1
    torch.testing.assert_close(
        logits, run(Runner(model, bind_to(model, LADDER), 2, None, name), 100)
    )


@pytest.mark.slow
def test_steps_compile_with_a_named_backend() -> None:
    name = "int8"
    model = tiny_model("qwen3")
    runner = Runner(model, bind_to(model, LADDER), 2, "eager", name)
    logits = run(runner, 60)
    assert runner.compile_seconds is not None
    torch.testing.assert_close(
        logits, run(Runner(model, bind_to(model, LADDER), 2, None, name), 60)
    )
