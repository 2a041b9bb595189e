import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lacache import Engine, LaCache
from lacache.calibration.store import profile_path, save_profile
from lacache.errors import HeadProfileWarning
from lacache.models.fingerprint import fingerprint
from lacache.policies import HeadProfile
from tests.cache.tiny_models import tiny_model
from tests.engine.tiny import tiny_llama

HOSTS = (LaCache, Engine)


def test_a_checkpoint_has_one_fingerprint_in_every_precision() -> None:
    # As in a file: written in bfloat16, loaded in any type.
    model = tiny_model("llama").to(torch.bfloat16)
    original = fingerprint(model)
    assert fingerprint(model.to(torch.float32)) == original
    assert fingerprint(model.to(torch.float16)) == original


def test_a_float32_checkpoint_has_the_fingerprint_of_its_bfloat16_rounding() -> None:
    model = tiny_model("qwen3")
    original = fingerprint(model)
    assert fingerprint(model.to(torch.bfloat16)) == original


def test_other_weights_differ_in_the_second_part_alone() -> None:
    shape, weights = fingerprint(tiny_model("llama", seed=0)).split("-")
    other_shape, other_weights = fingerprint(tiny_model("llama", seed=1)).split("-")
    assert shape == other_shape
    assert weights != other_weights


def test_another_shape_differs_in_the_first_part() -> None:
    shape = fingerprint(tiny_model("llama")).split("-")[0]
    assert fingerprint(tiny_model("llama", num_hidden_layers=4)).split("-")[0] != shape
    assert fingerprint(tiny_model("qwen2")).split("-")[0] != shape


def test_weights_that_are_not_in_memory_leave_the_shape() -> None:
    model = tiny_model("llama")
    before = fingerprint(model)
    model.model.layers[3].to("meta")
    assert fingerprint(model).split("-")[0] == before.split("-")[0]


def test_one_changed_matrix_shows() -> None:
    model = tiny_model("llama")
    before = fingerprint(model)
    model.model.layers[3].self_attn.k_proj.weight.data *= 1.1
    assert fingerprint(model) != before


@pytest.mark.parametrize("config", ["Int8WeightOnly", "Float8WeightOnly"])
def test_packed_weights_differ_as_their_models_do(config: str) -> None:
    pytest.importorskip("torchao", reason="needs the extra int8")
    from torchao import quantization

    def packed(scale: float) -> str:
        model = tiny_llama()
        model.model.layers[3].self_attn.k_proj.weight.data *= scale
        quantization.quantize_(model, getattr(quantization, f"{config}Config")())
        return fingerprint(model)

    assert packed(1.0) == packed(1.0) != packed(1.5)


def save_profile_of(model: Any) -> HeadProfile:
    order = tuple((layer, head) for layer in range(5) for head in range(2))
    profile = HeadProfile(fingerprint(model), "made", 64, 4, ((0.1, 0.1),) * 5, order, ((0, 1.0),))
    save_profile(profile, profile_path(profile.fingerprint))
    return profile


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LACACHE_HOME", str(tmp_path))


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("host", HOSTS)
def test_a_model_without_a_profile_is_warned_of_once(host: Callable[..., Any]) -> None:
    model = tiny_llama()
    model.config.name_or_path = "some/model"
    with pytest.warns(HeadProfileWarning) as issued:
        made = host(model, 64)
    (warning,) = issued
    assert warning.filename == __file__
    assert str(warning.message) == (
        "the weights of some/model have no head profile, so policy 'balanced' works without "
        "knowing its retrieval heads; measure it once with lacache.calibrate(model, tokenizer) or: "
        "lacache calibrate --model some/model"
    )
    assert made.policy.shape.profile is None
    with warnings.catch_warnings():
        warnings.simplefilter("error", HeadProfileWarning)
        for each in HOSTS:
            each(model, 64)
    with pytest.warns(HeadProfileWarning, match=r"of LlamaForCausalLM .* tokenizer\)$"):
        host(tiny_llama(), 64)


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("host", HOSTS)
def test_the_profile_of_other_weights_serves_with_a_warning(host: Callable[..., Any]) -> None:
    profile = save_profile_of(tiny_llama(seed=1))
    with pytest.warns(HeadProfileWarning, match="uses that of made, of equal shape"):
        made = host(tiny_llama(), 64)
    assert made.policy.shape.profile == profile


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("host", HOSTS)
def test_nothing_is_warned_of_where_nothing_is_missing(host: Callable[..., Any]) -> None:
    known = tiny_llama(seed=1)
    profile = save_profile_of(known)
    with warnings.catch_warnings():
        warnings.simplefilter("error", HeadProfileWarning)
        assert host(known, 64).policy.shape.profile == profile
        host(tiny_llama(), 64, "ladder")


@pytest.mark.usefixtures("home")
def test_an_engine_takes_the_fingerprint_once(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    def take(model: Any) -> str:
        taken.append(fingerprint(model))
        return taken[-1]

    for name in ("models.fingerprint", "engine.engine", "engine.runner"):
        monkeypatch.setattr(f"lacache.{name}.fingerprint", take)
    model = tiny_llama()
    save_profile_of(model)
    engine = Engine(model, 64)
    assert taken == [engine.scheduler.runner.fingerprint]


@pytest.mark.usefixtures("home")
def test_quantised_weights_have_the_profile_of_their_checkpoint() -> None:
    pytest.importorskip("torchao", reason="needs the extra int8")
    model = tiny_llama()
    original, profile = fingerprint(model), save_profile_of(model)
    engine = Engine(model, 64, weights="int8")
    assert engine.policy.shape.profile == profile
    assert engine.scheduler.runner.fingerprint == original
    assert fingerprint(model) == original
    # The quantised copy has no weights of its own to take a fingerprint of.
    assert engine.kind != Engine(model, 64).kind
