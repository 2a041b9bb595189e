"""Steps by the kernel against the same steps by the model's modules, in turns."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lacache import Engine, LaCache
from lacache.engine.cpu import fused_step
from lacache.engine.cpu.fused_step import MOST_BATCH_SLOTS
from lacache.kernels.build import load_kernels
from lacache.models.packed.blocks import read_blocks
from lacache.models.packed.layers import PackedLinear
from lacache.models.packed.weight import PackedWeight
from lacache.policies import Ladder
from tests.cache.static.policy_strategies import sized_policies
from tests.cache.tiny_models import FAMILIES, HYBRID, VOCAB, random_ids, tiny_model
from tests.engine.ragged import new_runner
from tests.models.tiny import random_blocks
from tests.policies.sized import Sized

LADDER = (16, Ladder(span=2, sinks=2, recent=5, evict_batch=3))
FUSED = {
    "llama",
    "llama-llama3-rope",
    "llama-yarn",
    "llama-dynamic",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3",
    # With multipliers of 1.
    "granite",
}
PACKED = ("Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K", "Q6_K")


@pytest.fixture(autouse=True, scope="module")
def _kernels() -> None:
    load_kernels()


def pack(model: Any, kinds: tuple[str, ...], seed: int = 0) -> Any:
    """Give linear layers random packed weights of these kinds, in turns; "" leaves a layer."""
    random = np.random.default_rng(seed)
    linears = [name for name, each in model.named_modules() if isinstance(each, nn.Linear)]
    for number, name in enumerate(linears):
        linear, kind = model.get_submodule(name), kinds[number % len(kinds)]
        if not kind:
            continue
        blocks = torch.from_numpy(random_blocks(kind, *linear.weight.shape, random))
        weight = PackedWeight.pack(read_blocks(kind, blocks))
        model.set_submodule(name, PackedLinear(weight, linear.bias, linear.weight.dtype))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family).to(dtype)
    assert new_runner(model, LADDER, 2, None, kernels=True).fused == (family in FUSED)


def test_modules_run_once_for_a_pair_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = []

    def run_modules(model: Any, modules: Any, tokens: Any, start: int) -> Any:
        pairs.append((tokens, start))
        return original(model, modules, tokens, start)

    original = fused_step._run_modules
    monkeypatch.setattr(fused_step, "_run_modules", run_modules)
    assert new_runner(tiny_model("llama"), LADDER, 2, None, kernels=True).fused
    assert pairs == [((1, 2), 0), ((1, 2), 100_003)]


def distance(found: Tensor, expected: Tensor) -> float:
    wide = expected.float()
    return float((found.float() - wide).norm() / wide.norm().clamp_min(1e-9))


def check_both(
    model: Any, sized: Sized, num_slots: int, seed: int, tolerance: float, calls: int = 20
) -> None:
    """Make the same random calls of two runners; compare logits, and in the end the caches."""
    fused, twin = runners = [
        new_runner(model, sized, num_slots, None, kernels=True, fuse=fuse) for fuse in (True, False)
    ]
    assert (fused.fused, twin.fused) == (True, False)
    generator = torch.Generator().manual_seed(seed)

    def draw(most: int) -> int:
        return int(torch.randint(most, (), generator=generator))

    for _ in range(calls):
        batch_slot, kind = draw(num_slots), draw(8)
        if kind == 0:
            for runner in runners:
                runner.cache.clear(batch_slot)
        elif kind < 3:
            room = fused.cache.sequences[batch_slot].room()
            tokens = 2 + torch.randint(VOCAB - 2, (1 + draw(room),), generator=generator)
            found, expected = (runner.prefill(batch_slot, tokens) for runner in runners)
            assert distance(found, expected) < tolerance
        else:
            active = [each for each in range(num_slots) if each == batch_slot or draw(2)]
            tokens = [2 + draw(VOCAB - 2) for _ in range(num_slots)]
            found, expected = (runner.decode(tokens, active)[active] for runner in runners)
            assert distance(found, expected) < tolerance
    for mine, others in zip(fused.cache.storages(), twin.cache.storages(), strict=True):
        for found, expected in zip(mine.flat, others.flat, strict=True):
            assert distance(found, expected) < tolerance


@settings(max_examples=12)
@given(
    family=st.sampled_from(sorted(FUSED)),
    sized=sized_policies(5, 2),
    num_slots=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_steps_are_the_modules(family: str, sized: Sized, num_slots: int, seed: int) -> None:
    model = tiny_model(family, max_position_embeddings=4096)
    for name, bias in model.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            bias.data.normal_(1.0, 0.2)
    check_both(model, sized, num_slots, seed, 1e-4)


@pytest.mark.parametrize("num_slots", [1, 3])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_steps_in_bfloat16_are_the_modules(family: str, num_slots: int) -> None:
    check_both(tiny_model(family).bfloat16(), LADDER, num_slots, 0, 0.15)


@pytest.mark.parametrize("num_slots", [1, 3])
def test_sliding_layers_are_the_modules(num_slots: int) -> None:
    types = HYBRID["layer_types"]
    model = tiny_model(
        "qwen2", layer_types=types, num_hidden_layers=7, use_sliding_window=True, sliding_window=8
    )
    check_both(model, LADDER, num_slots, 0, 1e-4, calls=40)


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("num_slots", [1, 5, MOST_BATCH_SLOTS + 5])
def test_steps_of_packed_weights_are_the_modules(kind: str, num_slots: int) -> None:
    """Beside layers of other kinds, and plain ones."""
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_hidden_layers": 2}
    kinds = (kind, "Q4_1", kind, "", "Q6_K")
    model = pack(tiny_model("qwen3", layer_types=["full_attention"] * 2, **sizes), kinds)
    sized = 16, Ladder(span=1, sinks=2, recent=5, evict_batch=3)
    check_both(model, sized, num_slots, 0, 0.05)


def test_steps_of_int8_weights_are_the_modules() -> None:
    model = tiny_model("qwen2")
    fused, twin = (
        new_runner(model, LADDER, 1, None, None, "int8", kernels=True, fuse=fuse)
        for fuse in (True, False)
    )
    assert fused.fused
    for token in random_ids(30)[0].tolist():
        found, expected = (runner.decode([token], [0]) for runner in (fused, twin))
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("packed", [False, True])
def test_neighbours_and_threads_change_no_bit(packed: bool) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    model = tiny_model("llama", **sizes)
    if packed:
        pack(model, ("Q4_1", "Q4_K", "Q6_K", ""))
    text = random_ids(40)[0].tolist()

    def logits(batch_slot: int, others: list[int]) -> Tensor:
        runner = new_runner(model, LADDER, 6, None, kernels=True)
        assert runner.fused
        found = []
        for number, token in enumerate(text):
            tokens = [2 + (7 * each + number) % 50 for each in range(6)]
            tokens[batch_slot] = token
            found.append(runner.decode(tokens, [batch_slot, *others])[batch_slot])
        return torch.stack(found)

    for batch_slot, others in ((1, [0, 2, 5]), (5, [0, 4])):
        alone = logits(batch_slot, [])
        assert torch.equal(logits(batch_slot, others), alone)
        threads = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            assert torch.equal(logits(batch_slot, others), alone)
        finally:
            torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "changes",
    [
        {"residual_multiplier": 0.9},
        {"embedding_multiplier": 3.0},
        {"logits_scaling": 2.0},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_models_that_compute_more_are_not_fused(changes: dict[str, float]) -> None:
    runner = new_runner(tiny_model("granite", **changes), LADDER, 1, None, kernels=True)
    assert not runner.fused


def test_other_scalings_of_scores_are_the_models() -> None:
    check_both(tiny_model("granite", attention_multiplier=0.1), LADDER, 2, 0, 1e-4)


class OffsetNorm(nn.Module):
    """As in Gemma."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, states: Tensor) -> Tensor:
        scale = torch.rsqrt(states.square().mean(-1, keepdim=True) + self.eps)
        return states * scale * (1 + self.weight)


def other_norm(model: Any) -> Any:
    layer = model.model.layers[3]
    layer.input_layernorm = OffsetNorm(layer.input_layernorm)
    return model


def other_activation(model: Any) -> Any:
    model.model.layers[2].mlp.act_fn = nn.ReLU()
    return model


def added_module(model: Any) -> Any:
    model.model.layers[1].mlp.shared = nn.Linear(3, 3)
    return model


def hooked(model: Any) -> Any:
    model.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    return model


def other_forward(model: Any) -> Any:
    mlp = model.model.layers[1].mlp
    mlp.forward = type(mlp).forward.__get__(mlp)
    return model


@pytest.mark.parametrize(
    "change", [other_norm, other_activation, added_module, hooked, other_forward, Any]
)
def test_other_modules_are_not_fused(change: Any) -> None:
    model = tiny_model("llama")
    if change is not Any:
        model = change(model)
    assert new_runner(model, LADDER, 1, None, kernels=True).fused == (change is Any)


def test_hooks_of_a_cache_on_the_same_model_do_not_matter() -> None:
    model = tiny_model("llama")
    LaCache(model, *LADDER)
    assert new_runner(model, LADDER, 1, None, kernels=True).fused


def test_what_the_kernel_does_not_take_is_not_fused() -> None:
    model = tiny_model("llama")
    assert not new_runner(model, LADDER, 1, None, "int8", kernels=True).fused
    assert not new_runner(model, LADDER, MOST_BATCH_SLOTS + 1, None, kernels=True).fused
    assert not new_runner(model, LADDER, 1, None).fused
    assert not new_runner(tiny_model("llama").half(), LADDER, 1, None, kernels=True).fused


def test_gates_by_gelu_are_the_modules() -> None:
    check_both(tiny_model("llama", hidden_act="gelu_pytorch_tanh"), LADDER, 2, 0, 1e-4)
    assert not new_runner(
        tiny_model("llama", hidden_act="gelu"), LADDER, 1, None, kernels=True
    ).fused


def test_the_engine_compiles_nothing_for_a_fused_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr("torch.compile", refuse)
    texts = []
    for compile in (False, True):
        engine = Engine(tiny_model("llama"), *LADDER, compile=compile)
        assert engine.fused
        texts.append(list(engine.submit(random_ids(9)[0], max_new_tokens=20)))
        assert engine.compile_seconds is None
    assert texts[0] == texts[1]
    assert not Engine(tiny_model("phi3"), *LADDER).fused
