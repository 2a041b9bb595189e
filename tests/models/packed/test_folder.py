"""A GGUF file as a packed model: the same numbers, loaded without ever being unpacked."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lacache import Engine
from lacache.errors import ConfigError
from lacache.models import LoadedModel, load_model
from lacache.models.fingerprint import fingerprint
from lacache.models.packed import layers
from lacache.models.packed.layers import PackedEmbedding, PackedLinear, PackedModule
from tests.cache.tiny_models import random_ids
from tests.models.tiny import write_gguf

IDS = random_ids(23)


@pytest.fixture(
    scope="module", params=[("Q4_K", "Q6_K"), ("Q4_0", "Q5_1", "Q8_0"), ("Q2_K", "Q4_K")]
)
def gguf(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of some types."""
    path = tmp_path_factory.mktemp("packed") / f"{'-'.join(request.param)}.gguf"
    write_gguf(path, width=256, kinds=request.param)
    return path


@pytest.fixture(scope="module")
def packed(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """The packed model, converted and loaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LACACHE_HOME", str(tmp_path_factory.mktemp("home")))
        load_model(gguf, weights="file", progress=False)
        return load_model(gguf, weights="file", progress=False)


@pytest.fixture(scope="module")
def plain(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LACACHE_HOME", str(tmp_path_factory.mktemp("home")))
        return load_model(gguf, progress=False)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()


def test_every_matrix_of_a_type_that_stays_is_packed(packed: LoadedModel, gguf: Path) -> None:
    modules = dict(packed.model.named_modules())
    kinds = {type(module) for module in modules.values()}
    assert PackedLinear in kinds
    left = [m for m in modules.values() if type(m) in (torch.nn.Linear, torch.nn.Embedding)]
    assert bool(left) == ("Q2_K" in gguf.name)
    embedding = packed.model.get_input_embeddings()
    assert isinstance(embedding, PackedEmbedding) == ("Q2_K" not in gguf.name)


def test_numbers_are_those_of_the_unpacked_model(
    packed: LoadedModel, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "kernels_loaded", lambda: False)
    options: dict[str, Any] = {"gguf_file": gguf.name, "dtype": torch.float32}
    if "GgufConfig" in dir(transformers):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    expected = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, **options)
    # All others were written in bfloat16.
    modules = packed.model.named_modules()
    exact = {f"{name}.weight" for name, module in modules if isinstance(module, PackedModule)}
    for name, parameter in expected.named_parameters():
        if name not in exact:
            parameter.data = parameter.data.bfloat16().float()
    found = load_model(packed.path, dtype="float32", progress=False)
    torch.testing.assert_close(logits(found.model), logits(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("many", [True, False])
def test_activations_are_rounded_where_there_are_few(
    packed: LoadedModel, plain: LoadedModel, many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "_FEW", 0 if many else 1_000_000)
    model = load_model(packed.path, dtype="float32", progress=False).model
    expected, found = logits(plain.model), logits(model)
    error = (found - expected).norm() / expected.norm()
    monkeypatch.setattr(layers, "kernels_loaded", lambda: False)
    assert torch.allclose(found, logits(model), rtol=1e-4, atol=1e-4) == many
    assert error < 0.05


def test_it_has_the_fingerprint_of_the_unpacked_model(
    packed: LoadedModel, plain: LoadedModel
) -> None:
    assert fingerprint(packed.model) == fingerprint(plain.model)
    assert packed.model.dtype == plain.model.dtype == torch.bfloat16


def test_an_engine_runs_it(packed: LoadedModel, plain: LoadedModel) -> None:
    prompt = IDS[0].tolist()
    engine = Engine(packed.model, 16, "streaming")
    assert len(list(engine.submit(prompt, max_new_tokens=4))) == 4
    # Its sessions are not those of the unpacked model, which rounds less.
    assert engine.kind != Engine(plain.model, 16, "streaming").kind
    with pytest.raises(ConfigError, match="weights='int8' is for weights in 16 or 32 bits"):
        Engine(packed.model, 16, "streaming", weights="int8")


def test_derivatives_are_those_of_the_numbers(packed: LoadedModel, plain: LoadedModel) -> None:
    gradients = []
    for loaded in (packed, plain):
        embedded = loaded.model.get_input_embeddings()(IDS).detach().requires_grad_()
        loaded.model(inputs_embeds=embedded).logits.float().square().mean().backward()
        assert embedded.grad is not None
        gradients.append(embedded.grad.float())
    assert (gradients[0] - gradients[1]).norm() < 0.05 * gradients[1].norm()


def test_other_models_are_refused(tiny_directory: Path) -> None:
    with pytest.raises(ConfigError, match=r"weights='file' is for GGUF files, .*; try 'int4'"):
        load_model(tiny_directory, weights="file")
    with pytest.raises(ConfigError, match="weights='int3' must be None, 'file' or 'int4'"):
        load_model(None, weights="int3")
