"""Products in float32 where a processor has no arithmetic for the weights' type."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lacache.engine.cpu import linear
from lacache.engine.cpu.linear import linear_for, widened_linear
from lacache.models.arithmetic import has_arithmetic
from lacache.policies import Ladder
from tests.cache.tiny_models import tiny_model
from tests.engine.ragged import Ragged, new_runner

HALVES = (torch.bfloat16, torch.float16)


@given(
    tokens=st.integers(1, 9),
    size=st.integers(1, 40),
    outputs=st.integers(1, 70),
    block=st.sampled_from([1, 64, 2**20]),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, *HALVES]),
    seed=st.integers(0, 1000),
)
def test_any_product_is_rounded_once(
    tokens: int, size: int, outputs: int, block: int, bias: bool, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(1, tokens, size, generator=generator).to(dtype)
    weight = torch.randn(outputs, size, generator=generator).to(dtype)
    added = torch.randn(outputs, generator=generator).to(dtype) if bias else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "_BLOCK", block)
        found = widened_linear(states, weight, added)
    assert found.dtype is dtype
    exact = states.double() @ weight.double().T + (added.double() if added is not None else 0.0)
    slack = 1e-5 * size + torch.finfo(dtype).eps * exact.abs()
    assert ((found.double() - exact).abs() <= slack).all()


@pytest.mark.parametrize(
    ("capability", "dtype", "has"),
    [
        ("AVX2", torch.bfloat16, False),
        ("AVX2", torch.float16, False),
        ("AVX2", torch.float32, True),
        ("AVX512", torch.bfloat16, True),
        ("DEFAULT", torch.bfloat16, True),
    ],
)
def test_the_processor_decides(
    capability: str, dtype: torch.dtype, has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert has_arithmetic(dtype) is has
    assert linear_for(dtype) is (nn.functional.linear if has else widened_linear)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_the_engine_is_the_twin_on_either(
    capability: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    ladder = (16, Ladder(span=2, sinks=2, recent=5, evict_batch=3))
    low = tiny_model("qwen2").bfloat16()
    ragged = Ragged(new_runner(low, ladder, rows, None), seed=0)
    for _ in range(3):
        ragged.read(0, 9)
        ragged.step([0])
    # In the weights' own values, widened: what differs is rounding alone.
    (sequence,) = ragged.all[:1]
    wide = new_runner(low.float(), ladder, 1, None)
    tokens = torch.tensor(sequence.text)
    for count in range(1, len(tokens) + 1):
        exact = wide.prefill(0, tokens[count - 1 : count])
        if count in sequence.logits:
            found = sequence.logits[count]
            assert float((found - exact).norm() / exact.norm()) < 0.15
