"""Weights in int8 where they cannot be had."""

import pytest
from torch import nn

from lacache.engine.int8 import quantize_weights
from lacache.errors import ConfigError, MissingExtraError
from lacache.policies import Ladder
from tests.cache.tiny_models import tiny_model
from tests.engine.ragged import new_runner

LADDER = (24, Ladder(span=2, overlap=0, sinks=2, evict_batch=3))


@pytest.mark.parametrize("name", ["int4", "", "torch.int8"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"weights='.*' must be None.*int8; try 'int8'"):
        new_runner(tiny_model("llama"), LADDER, 1, None, weights=name)


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"weights='int8' needs torchao.*lacache\[int8\]"):
        quantize_weights(nn.Sequential(nn.Linear(2, 2)), "int8")
