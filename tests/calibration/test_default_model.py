"""The shipped profile, on the model that it was measured on and on probes of another kind."""

import random
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from lacache.calibration.emulation import Emulation
from lacache.models import load_model
from lacache.models.fingerprint import fingerprint
from lacache.policies.head_profile import find_profile

pytestmark = pytest.mark.slow

FILLER = " The grass is green. The sky is blue. The sun is yellow. Here we go."
ASK = " What is the pass key? The pass key is"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_default_model_has_a_profile_of_its_own(dtype: str) -> None:
    model_fingerprint = fingerprint(load_model(dtype=dtype, threads=1, progress=False).model)
    profile = find_profile(model_fingerprint)
    assert profile is not None
    assert profile.matches(model_fingerprint)


def test_a_quarter_of_the_heads_finds_a_pass_key() -> None:
    loaded = load_model(dtype="float32", threads=1, progress=False)
    profile = find_profile(fingerprint(loaded.model))
    assert profile is not None
    emulation = Emulation(loaded.model, window=profile.window, sinks=profile.sinks)
    nothing, everything = emulation.coefficients(0), emulation.coefficients(1)
    quarter = nothing.clone()
    for layer, head in profile.order[: len(profile.order) // 4]:
        quarter[layer, head] = 1.0

    def loss(mixing: Any, key: int) -> float:
        fact = f" The pass key is {key}. Remember it. {key} is the pass key."
        text = 8 * FILLER + fact + 24 * FILLER + ASK
        ids = loaded.tokenizer(text)["input_ids"]
        answer = loaded.tokenizer(f" {key}")["input_ids"]
        rows = torch.arange(len(ids) - 1, len(ids) + len(answer) - 1)
        logits = emulation.logits(ids + answer, rows, mixing)
        return float(cross_entropy(logits, torch.tensor(answer), reduction="sum"))

    for key in random.Random(0).sample(range(10_000, 100_000), 3):
        full, kept, lost = (loss(mixing, key) for mixing in (everything, quarter, nothing))
        assert kept - full < 0.2 * (lost - full)
