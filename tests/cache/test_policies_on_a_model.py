"""Policies on a model, with the head profile that belongs to it."""

from pathlib import Path
from typing import Any

import pytest

from lacache import LaCache, Ladder, Streaming, parse_policy
from lacache.calibration.store import profile_path, save_profile
from lacache.models.fingerprint import fingerprint
from lacache.policies.head_profile import HeadProfile
from tests.cache.tiny_models import random_ids, tiny_model


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("LACACHE_HOME", str(tmp_path))
    return tiny_model("llama")


def num_groups(cache: LaCache) -> int:
    return len(cache.policy.groups)


def test_the_users_profile_chooses_the_retrieval_heads(model: Any) -> None:
    assert num_groups(LaCache(model, 64, "recall")) > 1
    assert num_groups(LaCache(model, 64, "balanced")) == 1
    mark = fingerprint(model)
    pairs = tuple((layer, head) for layer in (3, 0, 1, 2, 4) for head in (1, 0))
    losses = ((0, 1.0), (1, 0.1))
    profile = HeadProfile(mark, "tiny", 16, 4, ((0.0, 0.0),) * 5, pairs, losses)
    save_profile(profile, profile_path(mark))
    assert num_groups(LaCache(model, 64)) > 1
    cache = LaCache(model, 64, "recall")
    assert cache.policy.groups[0].heads == {3: (1,)}
    cache.prefill(model, random_ids(500))
    per_token = 5 * 2 * 2 * 8 * 4
    assert 0.8 * 64 * per_token < cache.report().bytes <= 64 * per_token


def test_a_profile_of_other_layers_is_no_profile(model: Any) -> None:
    mark = fingerprint(model)
    pairs = tuple((layer, head) for layer in range(7) for head in (0, 1))
    save_profile(HeadProfile(mark, "tiny", 16, 4, ((0.0, 0.0),) * 7, pairs, ()), profile_path(mark))
    assert num_groups(LaCache(model, 64)) == 1


def test_text_and_objects_are_the_same_policy(model: Any) -> None:
    for text, policy in (
        ("streaming", Streaming()),
        ("ladder:span=2", Ladder(span=2)),
        ("balanced:sinks=2", parse_policy("balanced:sinks=2")),
    ):
        assert LaCache(model, 64, text).policy == LaCache(model, 64, policy).policy
    assert str(LaCache(model, 64, "ladder:span=2").policy) == "ladder:span=2 at 64"


def test_a_share_grows_with_the_prompt(model: Any) -> None:
    cache = LaCache(model, 0.5, "recall")
    cache.prefill(model, random_ids(300))
    assert cache.policy.capacity == 150
    assert num_groups(cache) > 1
