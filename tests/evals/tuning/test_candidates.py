from pathlib import Path
from typing import Any

import pytest
from lacache.policies.plan_record import plan_record, read_plan

from lacache.calibration.store import profile_path, save_profile
from lacache.errors import ConfigError
from lacache.evals.methods.registry import parse_method
from lacache.evals.tuning.candidates import (
    default_candidates,
    default_specs,
    given_candidates,
    has_profile,
    plan_of,
)
from lacache.models.fingerprint import fingerprint
from lacache.models.model_info import model_info
from lacache.policies import Streaming, mean_capacity
from lacache.policies.head_profile import HeadProfile
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


@pytest.mark.parametrize("num_layers", [2, 3, 5, 16, 24, 30, 80])
@pytest.mark.parametrize("with_profile", [True, False])
def test_specs_can_be_read_at_any_depth(num_layers: int, with_profile: bool) -> None:
    specs = default_specs(num_layers, has_profile=with_profile)
    policies = [parse_method(spec) for spec in specs]
    assert len(set(policies)) == len(specs)
    assert any(policy.name == "history" for policy in policies) == with_profile
    assert policies[1 if with_profile else 0] == parse_method("ladder")


def test_candidates_fit_into_the_same_bytes_and_are_plans_of_their_own(model: Any) -> None:
    without = default_candidates(model, 200)
    assert not has_profile(model)
    calibrated(model)
    assert has_profile(model)
    found = default_candidates(model, 200)
    assert set(found) > set(without)
    heads = model_info(model).num_heads
    plans = [plan_of(model, policy, 200) for policy in found]
    assert len(set(plans)) == len(plans)
    for plan in plans:
        assert 150 < mean_capacity(plan.bind_groups(heads)) <= 200
        assert read_plan(plan_record(plan)) == plan


def test_what_does_not_fit_is_no_candidate(model: Any) -> None:
    large, small = (set(default_candidates(model, capacity)) for capacity in (200, 30))
    assert small < large
    assert small
    assert not default_candidates(model, 3)


def test_a_users_candidates_are_checked_and_taken_once(model: Any) -> None:
    specs = ["streaming", "ladder", "full", "streaming:sinks=8", "ladder"]
    found = given_candidates(model, 200, specs)
    assert found == [parse_method("ladder"), parse_method("streaming:sinks=8")]
    assert plan_of(model, found[1], 200) == Streaming(200, sinks=8, evict_batch=25)
    for spec, told in (
        ("tova", "policy tova has no plan"),
        ("uniform", "policy uniform has no plan"),
        ("ladder:unit=999", "capacity=200"),
        ("nothing", "nothing"),
        ("history", "run lacache calibrate first"),
    ):
        with pytest.raises(ConfigError, match=told):
            given_candidates(model, 200, [spec])


def test_one_layer_is_too_few() -> None:
    with pytest.raises(ConfigError, match="at least 2 layers"):
        default_specs(1, has_profile=False)
