from pathlib import Path
from typing import Any

import pytest

from lacache.calibration.store import profile_path, save_profile
from lacache.errors import ConfigError
from lacache.evals.tuning.candidates import (
    bind_candidate,
    default_candidates,
    default_texts,
    given_candidates,
)
from lacache.models.fingerprint import fingerprint, model_profile
from lacache.models.model_info import model_info
from lacache.policies import (
    HeadProfile,
    Ladder,
    ModelShape,
    RetrievalHeads,
    Streaming,
    mean_capacity,
    parse_policy,
)
from tests.engine.tiny import tiny_llama


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LACACHE_HOME", str(tmp_path))


def calibrated(model: Any) -> None:
    heads = model_info(model).num_heads
    order = tuple((layer, head) for layer, count in enumerate(heads) for head in range(count))
    need = tuple((0.1,) * count for count in heads)
    profile = HeadProfile(fingerprint(model), "tiny", 64, 4, need, order, ((0, 1.0),))
    save_profile(profile, profile_path(profile.fingerprint))


def shape(num_layers: int, *, with_profile: bool) -> ModelShape:
    heads = (2,) * num_layers
    order = tuple((layer, head) for head in (1, 0) for layer in range(num_layers))
    importance = tuple((0.1,) * count for count in heads)
    profile = HeadProfile("made-up", "tiny", 64, 4, importance, order, ((0, 1.0),))
    return ModelShape(heads, profile if with_profile else None)


@pytest.mark.parametrize("num_layers", [2, 3, 5, 16, 24, 30, 80])
@pytest.mark.parametrize("with_profile", [True, False])
def test_candidates_can_be_parsed_at_any_depth(num_layers: int, with_profile: bool) -> None:
    texts = default_texts(shape(num_layers, with_profile=with_profile))
    policies = [parse_policy(text) for text in texts]
    assert len(set(policies)) == len(texts)
    assert any(isinstance(policy, RetrievalHeads) for policy in policies) == with_profile
    assert policies[1 if with_profile else 0] == Ladder()


def test_candidates_fit_into_the_same_bytes_and_keep_different_tokens(model: Any) -> None:
    without = default_candidates(model, 200)
    assert model_profile(model) is None
    calibrated(model)
    assert model_profile(model) is not None
    found = default_candidates(model, 200)
    assert set(found) > set(without)
    bound = [bind_candidate(model, policy, 200) for policy in found]
    assert len({each.explicit() for each in bound}) == len(bound)
    for policy, each in zip(found, bound, strict=True):
        assert 150 < mean_capacity(each.groups) <= 200
        assert parse_policy(str(policy)) == policy


def test_what_does_not_fit_is_no_candidate(model: Any) -> None:
    large, small = (set(default_candidates(model, capacity)) for capacity in (200, 30))
    assert small < large
    assert small
    assert not default_candidates(model, 3)


def test_a_users_candidates_are_validated_and_taken_once(model: Any) -> None:
    texts = ["streaming", "ladder", "full", "streaming:sinks=8", "ladder"]
    found = given_candidates(model, 200, texts)
    assert found == [Ladder(), Streaming(sinks=8)]
    assert bind_candidate(model, found[1], 200).groups[0].schedule.capacity == 200
    for text, message in (
        ("tova", "policy tova is a baseline of lacache eval"),
        ("ladder:unit=999", "budget=200 must be at least"),
        ("nothing", "nothing"),
    ):
        with pytest.raises(ConfigError, match=message):
            given_candidates(model, 200, [text])


def test_one_layer_is_too_few() -> None:
    with pytest.raises(ConfigError, match="at least 2 layers"):
        default_texts(shape(1, with_profile=False))
