"""The kernels against the same products written out in float64."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lacache import Engine
from lacache.cache.codecs import find_codecs
from lacache.cache.static.storage import LayerStates, Storage
from lacache.common.validation import KV_DTYPES
from lacache.engine.cpu.kernels import KernelAttention, kernel_product
from lacache.engine.int8 import Int8Linear, quantize_weights
from lacache.kernels.build import load_kernels
from lacache.policies import Ladder
from tests.cache.tiny_models import random_ids, tiny_model
from tests.engine.ragged import TOLERANCE, Ragged, new_runner, twin_logits
from tests.engine.test_runner import BY_HEAD
from tests.policies.sized import Sized

LADDER = (16, Ladder(span=2, sinks=2, recent=5, evict_batch=3))
WEIGHTS = (torch.float32, torch.bfloat16, torch.int8)
STATES = (torch.float32, torch.bfloat16)
SIZES = (2, 8, 12, 32, 64, 80, 96, 128)


@pytest.fixture(autouse=True, scope="module")
def _kernels() -> None:
    load_kernels()


def random_numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype is torch.int8:
        return torch.randint(-128, 128, shape, generator=generator, dtype=dtype)
    return torch.randn(shape, generator=generator).to(dtype)


@given(
    rows=st.integers(1, 70),
    size=st.integers(1, 150),
    dtype=st.sampled_from(WEIGHTS),
    seed=st.integers(0, 10**6),
)
def test_a_product_of_any_size(rows: int, size: int, dtype: torch.dtype, seed: int) -> None:
    weight = random_numbers((rows, size), dtype, seed)
    vector = random_numbers((size,), torch.float32, seed + 1)
    found = torch.ops.lacache.product(weight, vector)
    wide = weight.double()
    # What float32 sums can be off by: relative to the sum of the magnitudes.
    slack = 1e-6 * (wide.abs() @ vector.double().abs()) + 1e-30
    assert ((found.double() - wide @ vector.double()).abs() <= slack).all()


def slow_attend(query: Tensor, keys: Tensor, values: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Head by head, over its own rows alone."""
    rows, heads = query.shape[:2]
    shared = heads // first.shape[1]
    found = torch.empty(rows, heads, 1, values.shape[-1], dtype=torch.float64)
    for row in range(rows):
        for head in range(heads):
            start, stop = int(first[row, head // shared]), int(last[row, head // shared]) + 1
            mine = keys[start : start + stop].double()
            shares = (mine @ query[row, head, 0].double()).softmax(0)
            found[row, head, 0] = shares @ values[start : start + stop].double()
    return found


@given(
    rows=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    shared=st.integers(1, 9),
    slots=st.integers(1, 40),
    sizes=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    dtype=st.sampled_from(STATES),
    scale=st.sampled_from((0.1, 1.0, 30.0)),
    seed=st.integers(0, 10**6),
)
def test_attention_over_any_slots(
    rows: int,
    kv_heads: int,
    shared: int,
    slots: int,
    sizes: tuple[int, int],
    dtype: torch.dtype,
    scale: float,
    seed: int,
) -> None:
    query = scale * random_numbers((rows, kv_heads * shared, 1, sizes[0]), torch.float32, seed)
    keys = random_numbers((90, sizes[0]), dtype, seed + 1)
    values = random_numbers((90, sizes[1]), dtype, seed + 2)
    generator = torch.Generator().manual_seed(seed)
    # Columns of larger tensors, as those of one layer are.
    first, last = (
        torch.randint(most, (rows, kv_heads + 2), generator=generator)[:, 1:-1]
        for most in (91 - slots, slots)
    )
    found = torch.ops.lacache.attend(query, keys, values, first, last)
    expected = slow_attend(query, keys, values, first, last)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4 * max(1, scale))


@given(
    name=st.sampled_from(sorted(KV_DTYPES)),
    rows=st.integers(1, 3),
    shared=st.integers(1, 5),
    sizes=st.tuples(st.sampled_from(SIZES), st.sampled_from(SIZES)),
    scale=st.sampled_from((0.1, 1.0, 10.0)),
    centered=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_attention_over_slots_in_fewer_bits(
    name: str,
    rows: int,
    shared: int,
    sizes: tuple[int, int],
    scale: float,
    centered: bool,
    seed: int,
) -> None:
    """Against attention over decoded rows, whatever all keys have in common."""
    center = 20 * random_numbers((2, sizes[0]), torch.float32, seed + 3) if centered else None
    key_codec = find_codecs(name, torch.float32, None, center)[0]
    value_codec = find_codecs(name, torch.float32)[1]
    stored, wide = [], []
    for number, (codec, size) in enumerate(zip((key_codec, value_codec), sizes, strict=True)):
        states = random_numbers((1, 2, 30, size), torch.float32, seed + number)
        if number == 0 and center is not None:
            states = states + center[:, None]
        encoded = codec.encode(states)
        stored.append(Storage(1, 60, codec.parts(size), torch.device("cpu")))
        for to, new in zip(stored[-1].flat, encoded, strict=True):
            to.copy_(new.flatten(0, 2))
        wide.append(codec.decode_wide(encoded).flatten(0, 2).double())
    query = scale * random_numbers((rows, 2 * shared, 1, sizes[0]), torch.float32, seed + 4)
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(15, (rows, 2), generator=generator) + torch.tensor([0, 30])
    last = torch.randint(15, (rows, 2), generator=generator)
    found = KernelAttention().attend(
        query,
        LayerStates(stored[0], key_codec),
        LayerStates(stored[1], value_codec),
        first,
        last,
        {"scaling": 1.0},
    )
    assert found is not None
    expected = slow_attend(query, wide[0], wide[1], first, last)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=2e-4 * max(1, scale))


@pytest.mark.parametrize("change", ["keys", "values", "scales", "type"])
def test_coded_states_that_do_not_fit_are_refused(change: str) -> None:
    integers, scales = torch.zeros(20, 8, dtype=torch.int8), torch.ones(20, 1).bfloat16()
    states = {"keys": integers, "of_keys": scales, "values": integers, "of_values": scales}
    states |= {
        "keys": {"keys": integers[:, :7].contiguous()},
        "values": {"values": integers[:19], "of_values": scales[:19]},
        "scales": {"of_values": torch.ones(20, 3).bfloat16()},
        "type": {"of_keys": scales.float()},
    }[change]
    where = torch.tensor([[0, 5]]), torch.tensor([[4, 4]])
    with pytest.raises(RuntimeError, match=r"lacache::attend_coded: (contiguous|keys as long)"):
        torch.ops.lacache.attend_coded(torch.randn(1, 4, 1, 8), *states.values(), *where)


@pytest.mark.parametrize("dtype", WEIGHTS)
def test_threads_change_nothing(dtype: torch.dtype) -> None:
    weight = random_numbers((701, 257), dtype, 0)
    vector = random_numbers((257,), torch.float32, 1)
    state_dtype = torch.float32 if dtype is torch.int8 else dtype
    states = (
        random_numbers((3, 6, 1, 64), torch.float32, 2),
        random_numbers((2400, 64), state_dtype, 3),
        random_numbers((2400, 64), state_dtype, 4),
        400 * torch.arange(6).view(3, 2),
        torch.full((3, 2), 399),
    )
    found = []
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            product = torch.ops.lacache.product(weight, vector)
            found.append((product, torch.ops.lacache.attend(*states)))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_torch_can_compile_them() -> None:
    product = (random_numbers((8, 16), torch.bfloat16, 0), torch.randn(16))
    torch.library.opcheck(torch.ops.lacache.product.default, product)
    states = [random_numbers((20, 8), torch.bfloat16, n) for n in range(2)]
    where = torch.tensor([[0, 5], [10, 15]]), torch.tensor([[4, 2], [0, 3]])
    query = torch.randn(2, 4, 1, 8)
    torch.library.opcheck(torch.ops.lacache.attend.default, (query, *states, *where))
    for dtype, width in ((torch.int8, 8), (torch.uint8, 4)):
        coded = torch.ones(20, width, dtype=dtype), torch.ones(20, 1).bfloat16()
        torch.library.opcheck(
            torch.ops.lacache.attend_coded.default, (query, *coded, *coded, *where)
        )


@pytest.mark.parametrize(
    ("weight", "vector"),
    [
        (torch.zeros(4, 8).half(), torch.zeros(8)),
        (torch.zeros(4, 8), torch.zeros(8).bfloat16()),
        (torch.zeros(4, 8), torch.zeros(7)),
        (torch.zeros(8, 4).T, torch.zeros(8)),
    ],
    ids=["weights", "vector", "size", "order"],
)
def test_other_inputs_are_refused(weight: Tensor, vector: Tensor) -> None:
    with pytest.raises(RuntimeError, match="lacache::product: weight"):
        torch.ops.lacache.product(weight, vector)


def test_a_product_in_the_vectors_type() -> None:
    weight, vector = torch.randn(9, 20).bfloat16(), torch.randn(20).bfloat16()
    found = kernel_product(weight, vector)
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, (weight.float() @ vector.float()).bfloat16())


class Calls(TorchDispatchMode):
    """Counts those of the kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "lacache":
            self.names[func._opname] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "gemma3", "gpt-oss", "smollm3"])
def test_families_are_the_twins(family: str, rows: int) -> None:
    model = tiny_model(family)
    runner = new_runner(model, LADDER, rows, None, kernels=True, fuse=False)
    linear = sum(type(module) is nn.Linear for module in model.modules())
    ragged = Ragged(runner, seed=0)
    ragged.read(0, 13)
    with Calls() as calls:
        ragged.step([0])
    # gpt-oss attends with sinks of its own, by its eager function.
    layers = 0 if family == "gpt-oss" else model.config.num_hidden_layers
    assert calls.names["attend"] == layers
    assert calls.names["product"] == (linear if rows == 1 else 0)
    for _ in range(12):
        ragged.step([0])
    ragged.read(0, 1)
    if rows > 1:
        ragged.read(2, 4)
        for _ in range(9):
            ragged.step([0, 2])
    ragged.check(model, LADDER)


def test_types_are_those_without_the_kernels() -> None:
    """Half precision goes by torch; fewer bits are read as they are instead of decoded."""
    for model, options in (
        (tiny_model("llama").half(), {}),
        (tiny_model("llama"), {"kv_dtype": "int8"}),
        (tiny_model("qwen2"), {"kv_dtype": "int4"}),
    ):
        text = random_ids(40)[0]
        found = []
        for kernels in (False, True):
            runner = new_runner(model, LADDER, 1, None, kernels=kernels, **options)
            runner.prefill(0, text[:9])
            steps = [runner.decode([token], [0])[0] for token in text[9:].tolist()]
            found.append(torch.stack(steps))
        torch.testing.assert_close(*found, rtol=1e-2, atol=1e-3)


def test_the_callers_model_may_be_cast_while_the_engine_goes_on() -> None:
    """Else a compiled step would read numbers of one type as those of another."""
    model = tiny_model("llama")
    runner = new_runner(model, LADDER, 1, None, kernels=True)
    twin = new_runner(tiny_model("llama"), LADDER, 1, None, kernels=True)
    model.to(torch.bfloat16)
    assert {p.dtype for p in runner._model.parameters()} == {torch.float32}
    for token in random_ids(20)[0].tolist():
        assert torch.equal(runner.decode([token], [0]), twin.decode([token], [0]))


def test_int8_weights_of_a_transposed_layer() -> None:
    linear = nn.Linear(64, 128, bias=False)
    linear.weight = nn.Parameter(torch.randn(64, 128).T)
    layers = nn.Sequential(linear)
    quantize_weights(layers, "int8", kernels=True)
    states = torch.randn(1, 1, 64)
    torch.testing.assert_close(layers(states), linear(states), rtol=0.05, atol=0.1)


@pytest.mark.parametrize("change", ["rows", "heads", "size", "slots", "type", "first", "last"])
def test_states_that_do_not_fit_are_refused(change: str) -> None:
    query, keys, values = torch.randn(2, 4, 1, 8), torch.randn(20, 8), torch.randn(20, 6)
    first, last = torch.tensor([[0, 5], [10, 15]]), torch.full((2, 2), 4)
    if change == "rows":
        query = query[:1]
    elif change == "heads":
        query = query[:, :3].contiguous()
    elif change == "size":
        query = query[..., :7].contiguous()
    elif change == "slots":
        values = values[:19].contiguous()
    elif change == "type":
        values = values.bfloat16()
    elif change == "first":
        first = first + 1
    else:
        last = last - 5
    with pytest.raises(RuntimeError, match=r"lacache::attend: (one query|contiguous|each head's)"):
        torch.ops.lacache.attend(query, keys, values, first, last)


@pytest.mark.parametrize("sized", [LADDER, BY_HEAD], ids=["ladder", "heads apart"])
def test_a_compiled_step_is_the_twins(sized: Sized) -> None:
    model = tiny_model("llama")
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    runner = new_runner(model, sized, 1, backend, kernels=True, fuse=False)
    text = random_ids(60)[0]
    found = [runner.prefill(0, text[:9])]
    found += [runner.decode([token], [0])[0] for token in text[9:].tolist()]
    expected = twin_logits(model, text[None], sized)[0, 8:]
    torch.testing.assert_close(torch.stack(found), expected, atol=TOLERANCE, rtol=0)
    called = {str(node.target) for node in graphs[0].graph.nodes}
    assert {"lacache.product", "lacache.attend"} <= called
    assert len(graphs) == 1


@settings(max_examples=20)
@given(size=st.integers(1, 130), rows=st.integers(1, 40), seed=st.integers(0, 1000))
def test_int8_layers_are_the_weights_written_out(size: int, rows: int, seed: int) -> None:
    weight = random_numbers((rows, size), torch.int8, seed)
    scale = random_numbers((rows,), torch.float32, seed + 1).abs().bfloat16()
    layer = Int8Linear(weight, scale, None, kernels=True)
    states = random_numbers((1, 1, size), torch.bfloat16, seed + 2)
    found = layer(states)
    assert found.dtype is torch.bfloat16
    expected = (states.double() @ (weight.double() * scale.double()[:, None]).T).float()
    slack = 1e-2 * expected.abs() + 1e-4 * size * float(scale.max())
    assert ((found.float() - expected).abs() <= slack).all()


@pytest.mark.slow
def test_the_engine_with_inductor_is_the_engine_without() -> None:
    model = tiny_model("llama")
    prompt = random_ids(30)[0].tolist()
    texts = [
        list(Engine(model, *LADDER, compile=compile).submit(prompt, max_new_tokens=60))
        for compile in (False, True)
    ]
    assert texts[0] == texts[1]
