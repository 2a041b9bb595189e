import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, FalconConfig, Gemma2Config, Qwen3NextConfig

from lacache.calibration.attribution import attributions
from lacache.calibration.emulation import Emulation, visible_tokens
from lacache.errors import ConfigError, UnsupportedModelError, UnsupportedOperationError
from lacache.models.model_info import model_info
from tests.cache.tiny_models import FAMILIES, HYBRID, SHAPE, tiny_model
from tests.calibration.masked import masked_logits
from tests.calibration.slow_windows import slow_logits

TOKENS = 18
ALL = torch.arange(TOKENS)
BEFORE = torch.arange(TOKENS - 1)
WINDOW, SINKS = 4, 1
EVERY_FAMILY = [*FAMILIES, "gemma2"]


def any_model(family: str) -> Any:
    """A tiny model of a family, or one whose attention caps its scores."""
    if family != "gemma2":
        return tiny_model(family)
    torch.manual_seed(0)
    capped = Gemma2Config(**SHAPE | HYBRID, head_dim=8, attn_logit_softcapping=2.0)
    return AutoModelForCausalLM.from_config(capped, attn_implementation="eager").eval()


def with_sliding_windows(model: Any, window: int) -> Any:
    """Copy a model, with other windows in its sliding layers if it has any."""
    copied = copy.deepcopy(model)
    if model_info(model).sliding:
        model_info(copied).text_config.sliding_window = window
    return copied


def random_keep(layers: int, heads: int, seed: int) -> Tensor:
    return torch.rand(layers, heads, generator=torch.Generator().manual_seed(seed)) < 0.5


def ids(seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, 64, (TOKENS,), generator=generator).tolist()


def emulate(model: Any) -> Emulation:
    return Emulation(model, window=WINDOW, sinks=SINKS)


def loss_of(emulation: Emulation) -> Callable[[Tensor], float]:
    targets = torch.tensor(ids()[1:])
    return lambda mixing: float(cross_entropy(emulation.logits(ids(), BEFORE, mixing), targets))


def gradient_of(emulation: Emulation) -> Callable[[Tensor], Tensor]:
    targets = torch.tensor(ids()[1:])
    return lambda mixing: emulation.gradient(ids(), BEFORE, targets, mixing)[1]


def assert_close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=2e-4, rtol=2e-4)


@given(st.integers(0, 999), st.integers(1, TOKENS + 2), st.integers(0, 5))
@settings(max_examples=3)
def test_windows_equal_plain_loops(seed: int, window: int, sinks: int) -> None:
    model = tiny_model("llama", seed=seed, num_hidden_layers=3)
    keep = random_keep(3, 2, seed)
    fast = Emulation(model, window=window, sinks=sinks).logits(ids(seed), ALL, keep.float())
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


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_coefficients_of_1_and_0_are_full_and_window_attention(family: str) -> None:
    model = any_model(family)
    # A window of the model's own has no sinks.
    sinks = 0 if model_info(model).sliding else SINKS
    emulation = Emulation(model, window=WINDOW, sinks=sinks)
    narrow = with_sliding_windows(model, WINDOW)
    with torch.no_grad():
        plain = narrow(torch.tensor([ids()])).logits[0]
    full = emulation.logits(ids(), ALL, emulation.coefficients(1))
    torch.testing.assert_close(full, plain, atol=0, rtol=0)

    shape = emulation.coefficients().shape
    for keep in (torch.zeros(shape, dtype=torch.bool), random_keep(*shape, seed=1)):
        mixed = emulation.logits(ids(), ALL, keep.float())
        assert_close(mixed, masked_logits(narrow, ids(), keep, window=WINDOW, sinks=sinks))
        assert (mixed - full).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "gpt-oss"])
def test_longer_sliding_windows_are_narrowed_and_shorter_ones_are_not(family: str) -> None:
    model = any_model(family)
    (own,) = {layer.window for layer in model_info(model).sliding}
    for window, is_narrowed in ((own - 1, True), (own, False), (own + 1, False)):
        emulation = Emulation(model, window=window, sinks=0)
        full = emulation.logits(ids(), ALL, emulation.coefficients(1))
        with torch.no_grad():
            plain = model(torch.tensor([ids()])).logits[0]
        assert torch.equal(full, plain) is not is_narrowed


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_gradients_are_finite_differences(family: str) -> None:
    model = any_model(family)
    # The experts of gpt-oss compute in float32 at most.
    emulation = emulate(model if family == "gpt-oss" else model.double())
    generator = torch.Generator().manual_seed(2)
    mixing = torch.rand(emulation.coefficients().shape, generator=generator).double()
    # Logits are float32, so the step is not tiny.
    step = 2e-3
    gradient, loss = gradient_of(emulation)(mixing), loss_of(emulation)
    for layer, head in [(0, 0), (1, 1), (len(mixing) - 1, 0)]:
        change = torch.zeros_like(mixing)
        change[layer, head] = step
        difference = (loss(mixing + change) - loss(mixing - change)) / (2 * step)
        assert float(gradient[layer, head]) == pytest.approx(difference, abs=5e-4, rel=2e-2)


def test_gradients_pass_through_linear_attention() -> None:
    torch.manual_seed(0)
    experts = 4
    config = Qwen3NextConfig(
        **SHAPE | {"num_hidden_layers": 4},
        head_dim=8,
        layer_types=2 * ["linear_attention", "full_attention"],
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        # All experts, since the loss jumps where a token goes to another one.
        num_experts=experts,
        num_experts_per_tok=experts,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    try:
        model_info(model)
    except UnsupportedModelError:
        pytest.skip("this version of transformers does not carry the state of linear layers on")
    emulation = emulate(model)
    mixing = torch.tensor([[0.3, 0.8], [0.6, 0.1]]).double()
    gradient, loss = gradient_of(emulation)(mixing), loss_of(emulation)
    for place in ((0, 0), (0, 1), (1, 0), (1, 1)):
        change = torch.zeros_like(mixing)
        change[place] = step = 5e-3
        difference = (loss(mixing + change) - loss(mixing - change)) / (2 * step)
        assert float(gradient[place]) == pytest.approx(difference, abs=5e-4, rel=2e-2)


# Not gpt-oss: where a token goes to another expert, the loss jumps.
@pytest.mark.parametrize("family", ["llama", "gemma2", "smollm3"])
def test_attributions_sum_to_what_windows_in_all_heads_cost(family: str) -> None:
    emulation = emulate(any_model(family))
    loss, full = loss_of(emulation), emulation.coefficients(1)
    gradient = gradient_of(emulation)
    points = [(number + 0.5) / 24 for number in range(24)]
    cost = attributions(lambda point: gradient(emulation.coefficients(point)), points)
    whole = loss(emulation.coefficients(0)) - loss(full)
    assert float(cost.sum()) == pytest.approx(whole, abs=0.01 * abs(whole) + 1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt-oss"])
def test_the_model_is_left_as_it_was(family: str) -> None:
    model = tiny_model(family)
    first = next(model.parameters())
    first.requires_grad_(False)
    model.get_decoder().layers[0].train()
    before = state(model)
    emulation = emulate(model)
    emulation.logits(ids(), ALL, emulation.coefficients(0.5))
    gradient_of(emulation)(emulation.coefficients(0.5))
    assert state(model) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_the_model_as_it_was(error: type[BaseException]) -> None:
    model = tiny_model("llama")
    before = state(model)
    emulation = emulate(model)
    forwards = 0

    def interrupt(*_: Any) -> None:
        nonlocal forwards
        forwards += 1
        # The second time is in the backward, where the layer is computed once more.
        if forwards == 2:
            raise error

    norm = model.get_decoder().layers[2].input_layernorm
    handle = norm.register_forward_pre_hook(interrupt)
    with pytest.raises(error):
        gradient_of(emulation)(emulation.coefficients(0.5))
    handle.remove()
    assert forwards == 2
    assert state(model) == before


def state(model: Any) -> Any:
    """What a calibration changes for a while."""
    return (
        model.config._attn_implementation,
        [(p.requires_grad, p.grad) for p in model.parameters()],
        [
            (m.training, "forward" in vars(m), len(m._forward_pre_hooks), len(m._forward_hooks))
            for m in model.modules()
        ],
    )


def test_activations_are_computed_once_more_in_place_of_kept() -> None:
    model = tiny_model("llama", num_hidden_layers=12)
    emulation = emulate(model)
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        gradient_of(emulation)(emulation.coefficients(0.5))
    # Of each layer its input alone; with all activations it would be more than ten times as much.
    assert sum(kept) < 4 * 12 * TOKENS * model.config.hidden_size


def test_attention_that_takes_no_mask_is_refused() -> None:
    model = tiny_model("llama")
    emulation = emulate(model)
    model.set_attn_implementation("flex_attention")
    with pytest.raises(UnsupportedOperationError, match="flex_attention"):
        emulate(model)
    with pytest.raises(UnsupportedOperationError, match="flex_attention"):
        emulation.logits(ids(), ALL, emulation.coefficients())


def test_capped_scores_and_sinks_are_refused_where_they_would_be_ignored() -> None:
    for family in ("gemma2", "gpt-oss"):
        model = any_model(family)
        emulation = emulate(model)
        model.config._attn_implementation = "sdpa"
        with pytest.raises(UnsupportedOperationError, match="or has learned sinks"):
            emulation.logits(ids(), ALL, emulation.coefficients())


def test_a_model_that_attends_in_its_own_way_is_refused_by_name() -> None:
    model = AutoModelForCausalLM.from_config(
        FalconConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=64, alibi=False
        )
    ).eval()
    before = state(model)
    emulation = emulate(model)
    with pytest.raises(UnsupportedModelError, match="FalconAttention of FalconForCausalLM"):
        emulation.logits(ids(), ALL, emulation.coefficients())
    assert state(model) == before


@pytest.mark.parametrize(("window", "sinks"), [(0, 4), (4, -1)])
def test_impossible_windows_are_refused(window: int, sinks: int) -> None:
    model: Any = tiny_model("llama")
    with pytest.raises(ConfigError, match="must be at least"):
        Emulation(model, window=window, sinks=sinks)
