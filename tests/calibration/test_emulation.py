from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lacache.calibration.emulation import Emulation, visible_tokens
from lacache.errors import ConfigError, UnsupportedOperationError
from tests.cache.tiny_models import tiny_model
from tests.calibration.slow_windows import slow_logits

TOKENS = 18
ALL = torch.arange(TOKENS)


def random_keep(layers: int, heads: int, seed: int) -> Tensor:
    return torch.rand(layers, heads, generator=torch.Generator().manual_seed(seed)) < 0.5


def ids(seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, 64, (TOKENS,), generator=generator).tolist()


def assert_close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=2e-4, rtol=2e-4)


@given(st.integers(0, 999), st.integers(1, TOKENS + 2), st.integers(0, 5))
@settings(max_examples=3)
def test_windows_by_masks_equal_plain_loops(seed: int, window: int, sinks: int) -> None:
    model = tiny_model("llama", seed=seed, num_hidden_layers=3)
    keep = random_keep(3, 2, seed)
    fast = Emulation(model, window=window, sinks=sinks).logits(ids(seed), ALL, keep)
    assert_close(fast, slow_logits(model, ids(seed), keep, window=window, sinks=sinks))


@given(st.integers(1, 12), st.integers(1, 14), st.integers(0, 4))
@settings(max_examples=30)
def test_a_token_sees_sinks_and_its_window(num_tokens: int, window: int, sinks: int) -> None:
    visible = visible_tokens(num_tokens, window, sinks)
    for now in range(num_tokens):
        for token in range(num_tokens):
            past = token <= now
            assert visible[1, now, token] == past
            assert visible[0, now, token] == (past and (token < sinks or now - token < window))


@pytest.mark.parametrize(
    ("family", "attention"),
    [("llama", "sdpa"), ("gemma3", "eager"), ("gpt-neox", "sdpa"), ("gpt-oss", "eager")],
)
def test_unchanged_layers_are_not_computed_again(family: str, attention: str) -> None:
    model = tiny_model(family)
    model.set_attn_implementation(attention)
    emulation = Emulation(model, window=4, sinks=1)
    shape = len(emulation.num_heads), max(emulation.num_heads)
    full = torch.ones(shape, dtype=torch.bool)
    keep = full.clone()
    keep[0, 0] = False
    changes = [keep.clone() for _ in range(shape[0])]
    for layer, change in enumerate(changes):
        change[layer, -1] = False
    changes += [keep, ~full]
    rows = torch.tensor([5, TOKENS - 1])

    base, *variants = list(emulation.variants(ids(), rows, keep, changes))

    assert_close(base, emulation.logits(ids(), rows, keep))
    for change, variant in zip(changes, variants, strict=True):
        assert_close(variant, emulation.logits(ids(), rows, change))
    assert len({round(float(v.sum()), 3) for v in variants}) == len(changes)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_without_windows_it_is_the_model_and_leaves_nothing_behind(family: str) -> None:
    model = tiny_model(family)
    with torch.no_grad():
        before = model(torch.tensor([ids()])).logits[0]
    emulation = Emulation(model, window=4, sinks=1)
    full = torch.ones(len(emulation.num_heads), max(emulation.num_heads), dtype=torch.bool)

    assert_close(emulation.logits(ids(), ALL, full), before)
    half_done = emulation.variants(ids(), ALL, ~full, [full, ~full])
    next(half_done)
    next(half_done)
    half_done.close()

    with torch.no_grad():
        torch.testing.assert_close(model(torch.tensor([ids()])).logits[0], before, atol=0, rtol=0)
    assert not any(
        module._forward_pre_hooks or module._forward_hooks or "forward" in vars(module)
        for layer in model.get_decoder().layers
        for module in layer.modules()
        if module is not model.get_decoder()
    )


def test_attention_that_takes_no_mask_by_head_is_refused() -> None:
    model = tiny_model("llama")
    Emulation(model, window=4, sinks=1)
    model.set_attn_implementation("flex_attention")
    with pytest.raises(UnsupportedOperationError, match="flex_attention"):
        Emulation(model, window=4, sinks=1)


@pytest.mark.parametrize(("window", "sinks"), [(0, 4), (4, -1)])
def test_impossible_windows_are_refused(window: int, sinks: int) -> None:
    model: Any = tiny_model("llama")
    with pytest.raises(ConfigError, match="must be at least"):
        Emulation(model, window=window, sinks=sinks)
