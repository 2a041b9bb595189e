"""Configurations that would give wrong results are refused at the start, with the reason."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import (
    DeepseekV2Config,
    FalconH1Config,
    Gemma3TextConfig,
    GraniteConfig,
    MistralConfig,
    OlmoConfig,
)
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.custom_op import op_registry_oot

from lacache.errors import ConfigError, UnsupportedOperationError
from lacache.integrations.vllm import process, rotary
from lacache.integrations.vllm.plugin import register
from lacache.integrations.vllm.process import Process, validate_config
from lacache.integrations.vllm.rotary import SUPPORTED, validate_num_positions
from lacache.integrations.vllm.settings import Settings
from lacache.policies import Streaming
from tests.cache.tiny_models import HYBRID
from tests_vllm.models import WIDE, saved


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("llama", tmp_path_factory.mktemp("models"))[1]


def configured(folder: Path, **options: Any) -> Any:
    shared = {"skip_tokenizer_init": True, "dtype": "float32", "max_model_len": 256}
    return EngineArgs(str(folder), **shared | options).create_engine_config()


def test_supported(llama: Path) -> None:
    validate_config(configured(llama))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"kv_cache_dtype": "fp8"}, "keys and values of another type"),
        ({"kv_cache_dtype": "bfloat16"}, "keys and values of another type"),
        ({"enable_lora": True}, "LoRA"),
        (
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
            "speculative decoding",
        ),
        (
            {
                "kv_transfer_config": {
                    "kv_connector": "ExampleConnector",
                    "kv_role": "kv_both",
                }
            },
            "a KV connector",
        ),
        (
            {"tensor_parallel_size": 4, "decode_context_parallel_size": 2},
            "context parallelism",
        ),
    ],
)
def test_options_of_vllm(llama: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedOperationError, match=reason):
        validate_config(configured(llama, **options))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            MistralConfig(
                **WIDE,
                llama_4_scaling={"original_max_position_embeddings": 64, "beta": 0.1},
            ),
            "queries that are scaled by position",
        ),
        (
            GraniteConfig(**WIDE, layer_rope_theta=[1e4, 0, 1e4, 0, 1e4, 0]),
            "rotary positions that differ by layer",
        ),
        (OlmoConfig(**WIDE), "OlmoForCausalLM, which is not tested"),
        (Gemma3TextConfig(**WIDE | HYBRID, head_dim=32), "layers with a sliding window"),
        (
            DeepseekV2Config(
                **WIDE, kv_lora_rank=32, qk_nope_head_dim=32, qk_rope_head_dim=32, v_head_dim=32
            ),
            "latent attention",
        ),
        (FalconH1Config(**WIDE, mamba_d_ssm=64, mamba_n_heads=4), "a hybrid model"),
    ],
)
def test_models(tmp_path: Path, config: Any, reason: str) -> None:
    config.architectures = [f"{type(config).__name__.removesuffix('Config')}ForCausalLM"]
    config.architectures = [config.architectures[0].replace("Gemma3Text", "Gemma3")]
    config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedOperationError, match=reason):
        validate_config(configured(tmp_path))


def resolve(monkeypatch: pytest.MonkeyPatch, one: Process, config: Any) -> Any:
    monkeypatch.setattr(process, "get_current_vllm_config_or_none", lambda: config)
    return one.resolve()


def test_a_process_serves_one_setting(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LACACHE_VLLM", raising=False)
    one = Process()
    given = {"lacache": {"budget": 64, "policy": "ladder:span=3:overlap=1"}}
    first = resolve(monkeypatch, one, configured(llama, additional_config=given))
    assert first.budget == 64
    assert resolve(monkeypatch, one, configured(llama, additional_config=given)) == first
    assert one.settings() == first
    with pytest.raises(ConfigError, match="use a process for each"):
        resolve(monkeypatch, one, configured(llama))
    none = Process()
    assert resolve(monkeypatch, none, configured(llama)) is None
    with pytest.raises(ConfigError, match="use a process for each"):
        resolve(monkeypatch, none, configured(llama, additional_config=given))


def test_a_process_serves_one_model(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Process()
    given = {"lacache": {"budget": 64, "policy": "ladder:span=3:overlap=1"}}
    resolve(monkeypatch, one, configured(llama, additional_config=given))
    other = saved("qwen2", tmp_path)[1]
    with pytest.raises(ConfigError, match="use a process for each"):
        resolve(monkeypatch, one, configured(other, additional_config=given))


def test_rotary_layers_keep_the_names_that_switch_them() -> None:
    register()
    register()
    for layer in SUPPORTED:
        assert op_registry_oot[layer.__name__].name == layer.name == "rotary_embedding"


def test_positions_that_the_rotary_layer_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = SimpleNamespace(cos_sin_cache=range(4096))
    monkeypatch.setattr(rotary, "_MODEL_ROTARIES", [layer])
    validate_num_positions(Streaming().schedule(2, 4096), 4096)
    validate_num_positions(Streaming(positions="slots").schedule(2, 64), 8192)
    with pytest.raises(ConfigError, match="budget=5000 must be at most 4096"):
        validate_num_positions(Streaming().schedule(2, 5000), 4096)
    with pytest.raises(ConfigError, match=r"max_position_embeddings=8192 .* try positions=slots"):
        validate_num_positions(Streaming().schedule(2, 64), 8192)


def test_settings_from_the_environment(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LACACHE_VLLM", '{"budget": 99, "policy": "streaming"}')
    found = resolve(monkeypatch, Process(), configured(llama))
    assert found == Settings(99, Streaming())


def test_a_ladder_that_does_not_fit_the_model(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"lacache": {"budget": 64, "policy": "ladder:span=6"}}
    with pytest.raises(ConfigError, match="span=6 must be below the number of layers"):
        resolve(monkeypatch, Process(), configured(llama, additional_config=given))
