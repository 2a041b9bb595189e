"""Weights in int8 against the same weights written out, and against the model's own."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lacache.engine.int8 import Int8Linear, quantize_weights
from lacache.engine.private_model import private_model
from lacache.engine.runner import Runner
from lacache.policies import Ladder
from tests.cache.tiny_models import random_ids, tiny_model
from tests.engine.ragged import new_runner

pytest.importorskip("torchao", reason="needs the extra int8")

LADDER = (24, Ladder(span=2, overlap=0, sinks=2, evict_batch=3))
TYPES = (torch.float32, torch.bfloat16, torch.float16)


def quantized(linear: nn.Linear) -> Int8Linear:
    """The layer that takes the place of one."""
    model = nn.Sequential(linear)
    quantize_weights(model, "int8")
    assert type(model[0]) is Int8Linear
    return model[0]


def written_out(layer: Int8Linear, dtype: torch.dtype = torch.float64) -> Tensor:
    return layer.get_buffer("weight").to(dtype) * layer.get_buffer("scale").to(dtype)[:, None]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 16), (2, 9), (1, 40)])
@pytest.mark.parametrize("size", [40, 64, 128])
def test_the_product_is_that_of_the_weights_written_out(
    size: int, shape: tuple[int, int], dtype: torch.dtype, bias: bool
) -> None:
    torch.manual_seed(0)
    layer = quantized(nn.Linear(size, 31, bias=bias).to(dtype))
    states = torch.randn(*shape, size).to(dtype)
    expected = states.double() @ written_out(layer).T
    if bias:
        expected += layer.bias.double()
    found = layer(states)
    assert found.dtype == dtype
    assert found.shape == (*shape, 31)
    close = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), expected, rtol=close, atol=4 * close)


def test_large_sums_do_not_overflow_float16() -> None:
    layer = quantized(nn.Linear(512, 3, bias=False).half())
    states = torch.full((1, 40, 512), 100.0).half()
    layer.get_buffer("weight").fill_(100)
    assert layer(states).isfinite().all()
    assert layer(states[:, :1]).isfinite().all()


@pytest.mark.parametrize("dtype", TYPES)
def test_each_weight_is_off_by_half_a_step(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(40, 31).to(dtype)
    before = linear.weight.detach().clone()
    layer = quantized(linear)
    largest = before.double().abs().amax(dim=-1, keepdim=True)
    error = (written_out(layer) - before.double()).abs()
    slack = 127 * torch.finfo(dtype).eps + 0.01
    assert (error <= largest / 254 * (1 + slack)).all()
    assert error.max() > 0


def run(runner: Runner, num_tokens: int = 60) -> Tensor:
    """Logits [N, V] of a text read in part and then given step by step."""
    ids = random_ids(num_tokens)[0]
    logits, start = [], 0
    while start < 40:
        stop = start + min(20, 40 - start, runner.cache.sequences[0].room())
        logits.append(runner.prefill(0, ids[start:stop]))
        start = stop
    rows = len(runner.cache.sequences)
    logits += [runner.decode([token] * rows, [0])[0] for token in ids[start:].tolist()]
    return torch.stack(logits)


class SlowLinear(nn.Module):
    """The weights written out in float32."""

    def __init__(self, layer: Int8Linear) -> None:
        super().__init__()
        self.weight = written_out(layer, torch.float32)
        self.bias = layer.bias

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.linear(states, self.weight, self.bias)


# torch's product with int8 takes layers of whole 64s only.
WIDE = {"hidden_size": 64, "intermediate_size": 64}


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("family", "changes"), [("llama", WIDE), ("qwen2", {}), ("gemma3", {})])
def test_a_run_is_that_of_the_weights_written_out(
    family: str, changes: dict[str, int], rows: int
) -> None:
    model = tiny_model(family, **changes)
    sized = (24, Ladder(span=2, overlap=1, sinks=2, evict_batch=3))
    fast = run(new_runner(model, sized, rows, None, weights="int8"))
    slow_model, _ = private_model(model)
    slow_model.config._attn_implementation = model.config._attn_implementation
    quantize_weights(slow_model, "int8")
    replaced = []
    for name, module in list(slow_model.named_modules()):
        if type(module) is Int8Linear:
            parent, _, child = name.rpartition(".")
            setattr(slow_model.get_submodule(parent), child, SlowLinear(module))
            replaced.append(name)
    assert "lm_head" in replaced
    assert len(replaced) == 1 + sum(type(m) is nn.Linear for m in model.model.modules())
    torch.testing.assert_close(
        fast, run(new_runner(slow_model, sized, rows, None)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("rows", [1, 3])
def test_compiled_steps_are_the_same(rows: int) -> None:
    model = tiny_model("llama", **WIDE)
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = run(new_runner(model, LADDER, rows, backend, weights="int8"))
    assert len(graphs) == 1
    eager = run(new_runner(model, LADDER, rows, None, weights="int8"))
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-4)


def test_logits_stay_near_those_of_the_models_own_weights() -> None:
    model = tiny_model("llama")
    exact = run(new_runner(model, LADDER, 1, None))
    coarse = run(new_runner(model, LADDER, 1, None, weights="int8"))
    error = (coarse - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert 0 < error.mean() < 0.06


def test_the_users_model_stays_as_it_is() -> None:
    model = tiny_model("llama")
    names = [name for name, _ in model.named_modules()]
    kinds = [type(module) for module in model.modules()]
    parameters = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
    ids = random_ids(10)
    before = model(ids).logits
    runner = new_runner(model, LADDER, 1, None, weights="int8")
    run(runner)
    assert [name for name, _ in model.named_modules()] == names
    assert [type(module) for module in model.modules()] == kinds
    for name, parameter in model.named_parameters():
        same, value = parameters[name]
        assert parameter is same
        assert torch.equal(parameter, value)
    assert torch.equal(model(ids).logits, before)
