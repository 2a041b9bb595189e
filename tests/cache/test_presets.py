"""Presets on a model: with the profile that belongs to it, and beside nothing else."""

from pathlib import Path
from typing import Any

import pytest

from lacache import LaCache, Streaming
from lacache.calibration.store import profile_path, save_profile
from lacache.errors import ConfigError
from lacache.models.fingerprint import fingerprint
from lacache.policies import Ladder, RetrievalHeads
from lacache.policies.head_profile import HeadProfile
from tests.cache.tiny_models import random_ids, tiny_model


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("LACACHE_HOME", str(tmp_path))
    return tiny_model("llama")


def test_the_users_profile_makes_a_preset_a_history(model: Any) -> None:
    assert isinstance(LaCache.from_model(model, 64, preset="global").policy, RetrievalHeads)
    assert isinstance(LaCache.from_model(model, 64, preset="local").policy, Ladder)
    mark = fingerprint(model)
    pairs = tuple((layer, head) for layer in (3, 0, 1, 2, 4) for head in (1, 0))
    save_profile(HeadProfile(mark, "tiny", 16, 4, ((0.0, 0.0),) * 5, pairs, ()), profile_path(mark))
    assert isinstance(LaCache.from_model(model, 64).policy, RetrievalHeads)
    cache = LaCache.from_model(model, 64, preset="global")
    assert isinstance(cache.policy, RetrievalHeads)
    assert cache.policy.history == pairs[:1]
    cache.prefill(model, random_ids(500))
    per_token = 5 * 2 * 2 * 8 * 4
    assert 0.8 * 64 * per_token < cache.report().bytes <= 64 * per_token


def test_a_profile_of_other_layers_is_no_profile(model: Any) -> None:
    mark = fingerprint(model)
    pairs = tuple((layer, head) for layer in range(7) for head in (0, 1))
    save_profile(HeadProfile(mark, "tiny", 16, 4, ((0.0, 0.0),) * 7, pairs, ()), profile_path(mark))
    assert isinstance(LaCache.from_model(model, 64).policy, Ladder)


def test_options_of_the_ladder_make_a_ladder(model: Any) -> None:
    assert LaCache.from_model(model, 64, policy="streaming").policy == Streaming(64)
    made = LaCache.from_model(model, 64, span=2).policy
    assert made == Ladder(capacity=64, span=2)


def test_a_share_grows_with_the_prompt(model: Any) -> None:
    cache = LaCache.from_model(model, 0.5, preset="global")
    cache.prefill(model, random_ids(300))
    assert isinstance(cache.policy, RetrievalHeads)
    assert cache.policy.capacity == 150


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"policy": "ladder"}, "policy"),
        ({"span": 2, "unit": 2}, "span, unit"),
        ({"config": Streaming(64)}, "Streaming"),
    ],
)
def test_a_preset_stands_alone(model: Any, arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"{named} cannot be given beside preset='local'"):
        LaCache.from_model(model, preset="local", **arguments)
