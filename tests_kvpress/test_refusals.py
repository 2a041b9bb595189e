"""What would give wrong results is refused, with the value, the rule and the remedy."""

from typing import Any

import pytest
import torch
from transformers import Phi3Config, Phi3ForCausalLM

from lacache.errors import ConfigError, InputError, UnsupportedModelError
from lacache.integrations.kvpress import LadderPress
from tests.cache.tiny_models import SHAPE, random_ids, tiny_model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compression_ratio": 1.0}, r"compression_ratio=1.0 must be in \[0, 1\).*try"),
        ({"compression_ratio": -0.1}, "compression_ratio=-0.1 must be in"),
        ({"compression_ratio": "half"}, "compression_ratio='half' must be a number"),
        ({"compression_ratio": True}, "compression_ratio=True must be a number"),
        ({"span": 3, "overlap": 3}, "overlap=3 must be below span=3; try overlap=1"),
        ({"geometry": "steep"}, "geometry='steep' must be one of"),
        ({"evict_batch": 0}, "evict_batch=0 must be at least 1"),
        ({"sinks": -1}, "sinks=-1 must be at least 0"),
        ({"window_layers": "01"}, "window_layers='01' must be a sequence"),
    ],
)
def test_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LadderPress(**options)


@pytest.mark.parametrize(
    ("press", "message"),
    [
        (LadderPress(0.5, span=5), "span=5 must be below the number of layers 5; try span=4"),
        (
            LadderPress(0.5, window_layers=(7,)),
            "window_layers=7 must be below the number",
        ),
    ],
)
def test_settings_that_do_not_work_with_the_model(press: LadderPress, message: str) -> None:
    with pytest.raises(ConfigError, match=message), press(tiny_model("llama")):
        pass


def test_a_ratio_that_is_set_later() -> None:
    press = LadderPress()
    press.compression_ratio = 1.0
    with (
        pytest.raises(ConfigError, match=r"compression_ratio=1\.0 must be"),
        press(tiny_model("llama")),
    ):
        pass


@pytest.mark.parametrize("rerotate", [True, False])
@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("gemma3", {}, "layers of type sliding_attention"),
        ("mistral", {"sliding_window": 16}, "layers of type sliding_attention"),
    ],
)
def test_windows(family: str, changes: dict[str, Any], message: str, rerotate: bool) -> None:
    press = LadderPress(0.5, rerotate=rerotate)
    with (
        pytest.raises(UnsupportedModelError, match=message),
        press(tiny_model(family, **changes)),
    ):
        pass


@pytest.mark.parametrize("family", ["granite", "smollm3", "olmo2"])
def test_models_that_kvpress_does_not_support_are_not_rerotated(family: str) -> None:
    model = tiny_model(family)
    with (
        pytest.raises(UnsupportedModelError, match=r"ForCausalLM is none of.*try rerotate=False"),
        LadderPress(0.5)(model),
    ):
        pass
    with torch.no_grad(), LadderPress(0.5, rerotate=False)(model):
        held = model(random_ids(60)).past_key_values
    assert {layer.keys.shape[2] for layer in held.layers} == {28}


def test_rotary_positions_that_change_with_the_length() -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "original_max_position_embeddings": 64,
    }
    model = Phi3ForCausalLM(
        Phi3Config(**SHAPE, original_max_position_embeddings=64, rope_parameters=rope)
    )
    with (
        pytest.raises(UnsupportedModelError, match="rope_type='longrope' changes"),
        LadderPress(0.5)(model),
    ):
        pass


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_padding(kernel: str) -> None:
    model = tiny_model("llama")
    model.set_attn_implementation(kernel)
    batch = random_ids(40, batch_size=2)
    mask = torch.ones_like(batch)
    with torch.no_grad(), LadderPress(0.5)(model):
        model(batch, attention_mask=mask)
        mask[1, :3] = 0
        with pytest.raises(InputError, match=r"padding.*one at a time"):
            model(batch, attention_mask=mask)
