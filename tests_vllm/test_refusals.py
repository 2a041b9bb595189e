"""Configurations that would give wrong results are refused at the start, with the reason."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    DeepseekV2Config,
    FalconH1Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    OlmoConfig,
)
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding
from vllm.model_executor.layers.rotary_embedding.yarn_scaling_rope import (
    YaRNScalingRotaryEmbedding,
)
from vllm.transformers_utils.config import get_config, get_hf_text_config

from lacache.errors import ConfigError, UnsupportedOperationError
from lacache.integrations.vllm import process, rotary
from lacache.integrations.vllm.plugin import register
from lacache.integrations.vllm.process import Process, validate_config
from lacache.integrations.vllm.rotary import SUPPORTED, ensure_num_positions
from lacache.integrations.vllm.settings import Settings
from lacache.integrations.vllm.shards import all_shards
from lacache.models.fingerprint import fingerprint, shape_hash
from lacache.policies import HeadProfile, Streaming, parse_policy
from lacache.policies.head_profile import SHIPPED, profile_json, read_profile
from tests.cache.tiny_models import HYBRID
from tests_vllm.models import CONFIGS, WIDE, saved

LADDER = {"lacache": {"budget": 64, "policy": "ladder:span=3:overlap=1"}}
ORDER = tuple((layer, head) for layer in range(6) for head in range(2))
PROFILE = HeadProfile("a-b", "made", 16, 4, ((0.1, 0.1),) * 6, ORDER, ((2, 0.4),))
SMOLLM2 = read_profile(SHIPPED / "smollm2-135m-instruct.json")


@pytest.fixture(autouse=True)
def no_profiles_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an empty folder of profiles; return it."""
    monkeypatch.delenv("LACACHE_VLLM", raising=False)
    monkeypatch.setenv("LACACHE_HOME", str(tmp_path))
    (tmp_path / "profiles").mkdir()
    return tmp_path / "profiles"


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
    one = Process()
    first = resolve(monkeypatch, one, configured(llama, additional_config=LADDER))
    assert first == Settings(64, parse_policy("ladder:span=3:overlap=1"))
    assert resolve(monkeypatch, one, configured(llama, additional_config=LADDER)) == first
    assert one.settings() == first
    with pytest.raises(ConfigError, match="use a process for each"):
        resolve(monkeypatch, one, configured(llama))
    none = Process()
    assert resolve(monkeypatch, none, configured(llama)) is None
    with pytest.raises(ConfigError, match="use a process for each"):
        resolve(monkeypatch, none, configured(llama, additional_config=LADDER))


def test_a_process_serves_one_model(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Process()
    resolve(monkeypatch, one, configured(llama, additional_config=LADDER))
    other = saved("qwen2", tmp_path)[1]
    with pytest.raises(ConfigError, match="use a process for each"):
        resolve(monkeypatch, one, configured(other, additional_config=LADDER))


def test_rotary_layers_keep_the_names_that_switch_them() -> None:
    register()
    register()
    for layer in SUPPORTED:
        assert op_registry_oot[layer.__name__].name == layer.name == "rotary_embedding"


def rotary_layer(monkeypatch: pytest.MonkeyPatch, kind: type, *settings: Any) -> Any:
    """Make a rotary layer with 4,096 positions the model's."""
    with set_current_vllm_config(VllmConfig()):
        layer = kind(32, 32, *settings)
    assert len(layer.cos_sin_cache) == 4096
    monkeypatch.setattr(rotary, "_MODEL_ROTARIES", [layer])
    return layer


def test_histories_longer_than_the_rotary_table(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = rotary_layer(monkeypatch, RotaryEmbedding, 4096, 1e4, True, torch.float32)
    table = layer.cos_sin_cache.clone()
    small, large = (Streaming().schedule(2, capacity) for capacity in (64, 9000))
    ensure_num_positions([small], 4096)
    assert len(layer.cos_sin_cache) == 4096
    ensure_num_positions([small, large], 4096)
    assert len(layer.cos_sin_cache) >= 9000
    assert layer.cos_sin_cache[:4096].equal(table)
    angle = torch.tensor(8999.0)
    assert torch.allclose(layer.cos_sin_cache[8999, 0], angle.cos(), atol=1e-5)


def test_positions_that_the_rotary_layer_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    rotary_layer(monkeypatch, YaRNScalingRotaryEmbedding, 1024, 1e4, True, 4.0, torch.float32)
    schedule = Streaming().schedule(2, 64)
    ensure_num_positions([schedule], 4096)
    ensure_num_positions([Streaming(positions="slots").schedule(2, 64)], 8192)
    with pytest.raises(ConfigError, match=r"keeps up to 8192 tokens.*at most 4096.*0.50 times"):
        ensure_num_positions([schedule, Streaming().schedule(2, 8192)], 4096)
    with pytest.raises(ConfigError, match=r"max_position_embeddings=8192 .* try positions=slots"):
        ensure_num_positions([schedule], 8192)


def test_settings_from_the_environment(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LACACHE_VLLM", '{"budget": 99, "policy": "streaming"}')
    found = resolve(monkeypatch, Process(), configured(llama))
    assert found == Settings(99, Streaming())


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"budget": 64, "policy": "full"}, "policy=full must be bounded"),
        ({"policy": "groups:0-2@64@streaming/3-5@full"}, "has a group without a limit"),
        ({"budget": 0.5}, "share of a prompt.*try budget=512"),
        ({}, "must have a budget"),
        ({"budget": 64, "policy": "ladder:span=6"}, "span=6 must be below the number of layers"),
        ({"budget": 5, "policy": "ladder"}, "budget=5 must be at least"),
        ({"budget": 64, "policy": "retrieval:heads=1.2"}, "KV head 2 of layer 1 must be below"),
        (
            {"budget": 64, "profile": profile_json(SMOLLM2)},
            "30 layers with 90 KV heads, and the model has 6 with 12; calibrate",
        ),
    ],
)
def test_settings_that_do_not_fit(
    llama: Path, given: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(llama, additional_config={"lacache": given})
    one = Process()
    with pytest.raises(ConfigError, match=reason):
        resolve(monkeypatch, one, config)
    assert one.settings() is None


def test_no_profile_is_known(
    llama: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy works without, and the log has the line to run."""
    one = Process()
    resolve(monkeypatch, one, configured(llama, additional_config={"lacache": {"budget": 99}}))
    assert len(one.schedules()) == 1
    (warning,) = [each for each in caplog.records if each.levelname == "WARNING"]
    assert f"lacache calibrate --model {llama}" in warning.getMessage()
    assert "policy balanced at budget 99 for every sequence" in caplog.text
    caplog.clear()
    resolve(monkeypatch, Process(), configured(llama, additional_config=LADDER))
    assert "calibrate" not in caplog.text


def test_profile_in_the_settings(
    llama: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Process()
    given = {"lacache": {"budget": 99, "profile": profile_json(PROFILE)}}
    resolve(monkeypatch, one, configured(llama, additional_config=given))
    bound = Settings(99, profile=PROFILE).bind((2,) * 6, 1)
    assert one.schedules() == [group.schedule for group in bound.groups]
    assert "(head profile of made)" in caplog.text
    assert "calibrate" not in caplog.text


def test_profile_by_shape(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fine-tuned SmolLM2-135M has the profile of the model."""
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
    ).save_pretrained(tmp_path)
    one = Process()
    given = {"lacache": {"budget": 512}}
    resolve(monkeypatch, one, configured(tmp_path, additional_config=given))
    bound = Settings(512, profile=SMOLLM2).bind(SMOLLM2.num_heads, 1)
    assert one.schedules() == [group.schedule for group in bound.groups]
    assert len(one.schedules()) > 2
    assert f"(head profile of {SMOLLM2.model})" in caplog.text
    assert "calibrate" not in caplog.text


def test_the_users_profile_by_shape(
    llama: Path, no_profiles_of_the_user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(llama, additional_config={"lacache": {"budget": 99}})
    shape = shape_hash(config.model_config.hf_text_config.to_dict())
    profile = profile_json(replace(PROFILE, fingerprint=f"{shape}-123"))
    (no_profiles_of_the_user / "one.json").write_text(json.dumps(profile))
    one = Process()
    resolve(monkeypatch, one, config)
    bound = Settings(99, profile=PROFILE).bind((2,) * 6, 1)
    assert one.schedules() == [group.schedule for group in bound.groups]


@pytest.mark.parametrize("family", CONFIGS)
def test_shapes(family: str, tmp_path: Path) -> None:
    """vLLM's configuration has the shape that the model's fingerprint starts with."""
    model, folder = saved(family, tmp_path)
    config = get_hf_text_config(get_config(str(folder), trust_remote_code=False))
    assert fingerprint(model).startswith(f"{shape_hash(config.to_dict())}-")


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_workers_have_every_head(stages: int, ranks: int) -> None:
    """Once, or on several ranks where there are more of these than heads."""
    shards = all_shards(stages, ranks, (2,) * 7)
    assert list(shards) == [(stage, rank) for stage in range(stages) for rank in range(ranks)]
    found = [
        (layer, head)
        for shard in shards.values()
        for layer, heads in shard.items()
        for head in heads
    ]
    copies = max(1, ranks // 2)
    assert sorted(found) == sorted(copies * [(x, h) for x in range(7) for h in range(2)])
