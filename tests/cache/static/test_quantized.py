"""Keys and values in eight bits against a slow twin, and against those of the model's own type."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lacache.cache.codecs import KV_DTYPES, Codec, EightBitCodec, PlainCodec, Stored, find_codec
from lacache.cache.static import static_cache
from lacache.cache.static.layout import CacheLayout
from lacache.cache.static.storage import Buffer, fixed_buffer
from lacache.engine.runner import Runner
from lacache.errors import ConfigError
from lacache.models.model_info import model_info
from lacache.policies import Group, Groups, Ladder, Streaming
from tests.cache.tiny_models import random_ids, tiny_model
from tests.policies.sized import bind, bind_to

CPU = torch.device("cpu")
LADDER = (24, Ladder(span=2, overlap=0, sinks=2, evict_batch=3))
AT_SLOTS = (24, Ladder(span=2, overlap=0, sinks=2, evict_batch=3, positions="slots"))
NAMES = sorted(KV_DTYPES)
MODEL_TYPES = (torch.float32, torch.bfloat16, torch.float16)
ROWS, HEADS, SLOTS, SIZE = 2, 3, 7, 8

names = pytest.mark.parametrize("name", NAMES)


def make(name: str | None, dtype: torch.dtype = torch.float32) -> Buffer:
    return fixed_buffer((ROWS, HEADS, SLOTS, SIZE), find_codec(name, dtype), CPU)


def scales_of(name: str, dtype: torch.dtype) -> torch.dtype:
    return EightBitCodec(KV_DTYPES[name], dtype).scale_dtype


def states_of(seed: int, num_new: int, dtype: torch.dtype, *, rows: int = 1) -> Tensor:
    """Random [rows, H, N, D]: tokens from very small to large, some numbers among them 0."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, HEADS, num_new, SIZE)
    states = torch.randn(shape, generator=generator)
    states *= 10.0 ** torch.randint(-6, 4, (*shape[:3], 1), generator=generator)
    return (states * (torch.rand(shape, generator=generator) > 0.1)).to(dtype)


def copies(buffer: Buffer) -> list[Tensor]:
    return [stored.view(ROWS, HEADS, SLOTS, -1).clone() for stored in buffer.storage.tensors]


def rounding_of(states: Tensor, dtype: torch.dtype) -> Tensor:
    """Most that a number of the type is off, if it should be `states`."""
    about = torch.finfo(dtype)
    return about.eps * states.abs() + about.eps * about.tiny


def slow_numbers(name: str) -> Tensor:
    """Every number that eight bits can be."""
    if name == "int8":
        return torch.arange(-127, 128, dtype=torch.float64)
    numbers = torch.arange(256, dtype=torch.uint8).view(KV_DTYPES[name]).double()
    return numbers[numbers.isfinite()]


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(NAMES),
    dtype=st.sampled_from(MODEL_TYPES),
    seed=st.integers(0, 10**6),
)
def test_each_state_becomes_the_nearest_that_can_be_stored(
    name: str, dtype: torch.dtype, seed: int
) -> None:
    buffer = make(name, dtype)
    states = states_of(seed, 4, dtype)
    buffer.write(1, 2, states)
    decoded = buffer.read(1, 6)[:, :, 2:]
    assert decoded.dtype == dtype

    scales = buffer.tensors(1)[1][None, :, 2:6].double()
    exact = states.double()
    can_be = slow_numbers(name) * scales
    distance = (can_be[..., None, :] - exact[..., None]).abs().min(dim=-1).values
    rounding = rounding_of(exact, dtype)
    # A division is rounded too, which can tip what lies half-way between two numbers.
    assert ((decoded.double() - exact).abs() <= distance * (1 + 1e-4) + rounding).all()

    largest = exact.abs().amax(dim=-1, keepdim=True)
    steps = largest / slow_numbers(name).max()
    assert ((scales - steps).abs() <= steps * torch.finfo(scales_of(name, dtype)).eps + 1e-37).all()


@names
@pytest.mark.parametrize("dtype", MODEL_TYPES)
def test_errors_are_as_documented(name: str, dtype: torch.dtype) -> None:
    buffer = make(name, dtype)
    states = states_of(3, SLOTS, dtype)
    buffer.write(0, 0, states)
    exact = states.double()
    largest = exact.abs().amax(dim=-1, keepdim=True)
    bound = largest / 254 if name == "int8" else torch.maximum(exact.abs() / 16, largest / 458_752)
    rounding = rounding_of(exact, dtype)
    slack = 1 + torch.finfo(scales_of(name, dtype)).eps + 1e-6
    error = (buffer.read(0, SLOTS).double() - exact).abs()
    assert (error <= bound * slack + rounding).all()
    assert error.max() > 0


@names
@pytest.mark.parametrize("dtype", MODEL_TYPES)
def test_zeros_stay_zeros(name: str, dtype: torch.dtype) -> None:
    buffer = make(name, dtype)
    assert (buffer.all() == 0).all()
    buffer.write(0, 0, torch.zeros(1, HEADS, SLOTS, SIZE, dtype=dtype))
    assert (buffer.all() == 0).all()


@names
def test_a_state_that_is_no_number_stays_none(name: str) -> None:
    buffer = make(name)
    states = torch.ones(1, HEADS, 3, SIZE)
    states[0, 1, 0, 2], states[0, 1, 1, 2] = float("nan"), float("inf")
    buffer.write(0, 0, states)
    decoded = buffer.read(0, 3)
    assert not decoded[0, 1, 0].isfinite().any()
    assert not decoded[0, 1, 1, 2].isfinite()
    assert torch.equal(decoded[0, 1, 2], states[0, 1, 2])
    assert torch.equal(decoded[0, 0], states[0, 0])


@names
@pytest.mark.parametrize("dtype", MODEL_TYPES)
def test_what_was_read_is_stored_as_it_was(name: str, dtype: torch.dtype) -> None:
    """So a key that does not move keeps its value."""
    buffer = make(name, dtype)
    for seed in range(100):
        buffer.write(0, 0, states_of(seed, SLOTS, dtype))
        once = buffer.read(0, SLOTS).clone()
        buffer.write(0, 0, once)
        assert torch.equal(buffer.read(0, SLOTS), once)


@names
def test_a_row_for_each_head_equals_a_write_in_each_active_batch_slot(name: str) -> None:
    fast, slow = make(name), make(name)
    for buffer in (fast, slow):
        for row in range(ROWS):
            buffer.write(row, 0, states_of(row, SLOTS, torch.float32))
    new = states_of(9, 1, torch.float32, rows=ROWS)
    first_rows = SLOTS * torch.arange(ROWS * HEADS).view(ROWS, HEADS)
    rows = first_rows + torch.tensor([[4], [6]])
    fast.storage.write(rows, torch.tensor([False, True]), new)
    slow.write(1, 6, new[1:2])
    assert torch.equal(fast.storage.read(rows[..., None])[1:], slow.read(1, 7, 6))
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
    assert all(type(buffer.storage.codec) is PlainCodec for buffer in rings)
    kind = PlainCodec if name is None else EightBitCodec
    assert all(
        type(buffer.storage.codec) is kind
        for heads in runner.cache.all_kv_heads()
        for buffer in heads.buffers
    )


@names
def test_sixteen_bits_become_eight_and_a_scale(name: str) -> None:
    info = model_info(tiny_model("llama").to(torch.bfloat16))
    numbers = 5 * 2 * 24 * 3  # layers, KV heads, slots; keys twice and values
    assert CacheLayout(info, bind(AT_SLOTS, info.num_heads)).bytes_per_sequence == numbers * 8 * 2
    eight = CacheLayout(info, bind(AT_SLOTS, info.num_heads), name)
    assert eight.bytes_per_sequence == numbers * (8 + 2)


@pytest.mark.parametrize("name", ["fp4", "torch.int8", "", torch.int8])
def test_other_types_are_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"kv_dtype=.* must be None.*int8, float8.*try 'int8'"):
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


@pytest.mark.parametrize(("name", "most"), [("int8", 0.06), ("float8_e4m3fn", 0.3)])
@pytest.mark.parametrize("sized", SIZED.values(), ids=SIZED.keys())
def test_logits_stay_near_those_of_the_models_own_type(name: str, most: float, sized: Any) -> None:
    model = tiny_model("llama")
    exact = run(Runner(model, bind_to(model, sized), 2, None), 100)
    runner = Runner(model, bind_to(model, sized), 2, None, name)
    coarse = run(runner, 100)
    assert runner.cache.sequences[1].groups[0].num_compactions > 10
    error = (coarse - exact).norm(dim=-1) / exact.norm(dim=-1)
    print(name, error.mean(), error[-20:].mean())
    assert 0 < error.mean() < most
    # Nor do they drift away.
    assert error[-20:].mean() < most


class SlowCodec(Codec):
    """States in the model's own type, each made the nearest that can be stored."""

    def __init__(self, name: str | None, dtype: torch.dtype) -> None:
        assert name is not None
        self._numbers = slow_numbers(name)
        self._fast = find_codec(name, dtype)
        self._dtype = dtype

    def parts(self, size: int) -> tuple[tuple[torch.dtype, int], ...]:
        return ((self._dtype, size),)

    def decode(self, stored: Stored) -> Tensor:
        return stored[0]

    def encode(self, states: Tensor) -> Stored:
        scales = states.double().abs().amax(dim=-1, keepdim=True) / self._numbers.max()
        distances = (self._numbers * scales[..., None] - states[..., None]).abs()
        distance, nearest = distances.min(dim=-1)
        slow = (self._numbers[nearest] * scales).to(states.dtype)
        # Half-way between two numbers the last bit of a processor decides, and either is right.
        fast = self._fast.decode(self._fast.encode(states))
        is_as_near = (fast - states).abs() <= distance + 1e-6 * states.abs()
        return (torch.where(is_as_near, fast, slow),)


@names
@pytest.mark.parametrize("sized", SIZED.values(), ids=SIZED.keys())
def test_a_run_is_that_of_states_made_the_nearest(
    name: str, sized: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    fast = run(Runner(model, bind_to(model, sized), 2, None, name), 70)
    monkeypatch.setattr(static_cache, "find_codec", SlowCodec)
    slow = Runner(model, bind_to(model, sized), 2, None, name)
    assert type(slow.cache.kv_heads[0][0].keys.storage.codec) is SlowCodec
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
    name = "float8_e4m3fn"
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
