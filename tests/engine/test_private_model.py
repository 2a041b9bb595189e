"""Models that the engine cannot make its own."""

import pytest

from lacache.engine.private_model import private_model
from lacache.errors import UnsupportedModelError
from lacache.models.decoder import find_decoder
from tests.cache.tiny_models import tiny_model


def test_a_model_on_two_devices() -> None:
    tiny = tiny_model("llama")
    tiny.lm_head.to("meta")
    with pytest.raises(UnsupportedModelError, match=r"lies on cpu, meta, .* one device; load it"):
        private_model(tiny)


def test_a_model_without_known_attention_modules() -> None:
    tiny = tiny_model("llama")
    for module in find_decoder(tiny).modules():
        vars(module).pop("layer_idx", None)
    with pytest.raises(
        UnsupportedModelError, match="no attention modules like those of transformers"
    ):
        private_model(tiny)
