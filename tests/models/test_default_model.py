"""The real default model, from its installed package."""

from pathlib import Path

import pytest
import torch

from lacache.common.packages import notice_once
from lacache.models import DEFAULT_MODEL, load_model


@pytest.mark.slow
def test_default_model_converts_once_and_knows_paris(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notice_once.cache_clear()
    first = load_model(threads=1)
    assert f"Model: {DEFAULT_MODEL.notice}" in capsys.readouterr().err
    assert first.path is not None
    weights = first.path / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert first.model.config.num_hidden_layers == 30
    assert first.model.dtype == torch.bfloat16
    assert first.tokenizer.chat_template is not None

    second = load_model(threads=1, progress=False)
    assert second.path == first.path
    assert weights.stat().st_mtime_ns == written
    assert second.name == DEFAULT_MODEL.name
    inputs = second.tokenizer("The capital of France is", return_tensors="pt")
    output = second.model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert "Paris" in second.tokenizer.decode(output[0])
