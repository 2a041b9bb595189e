"""The plugin's settings, their errors, and the supported releases of vLLM."""

import json
from pathlib import Path
from typing import Any

import pytest

from lacache.errors import ConfigError, InputError
from lacache.integrations.vllm.settings import KEY, VARIABLE, Settings, unsupported_reason
from lacache.policies import (
    Budget,
    HeadProfile,
    Ladder,
    ModelShape,
    Paper,
    Streaming,
    bind_policy,
    parse_policy,
)
from lacache.policies.head_profile import profile_json

LAYERS, HEADS, SLOT = 6, 2, 256
NUM_HEADS = (HEADS,) * LAYERS
IMPORTANCE = tuple((0.1 / (layer + 1), 0.01 * layer) for layer in range(LAYERS))
ORDER = tuple((layer, head) for head in range(HEADS) for layer in range(LAYERS))
PROFILE = HeadProfile("a-b", "made", 16, 4, IMPORTANCE, ORDER, ((2, 0.4),))
GROUPS = "groups:0-4@64@ladder:span=2:evict_batch=4/5@40@streaming:evict_batch=4"


def read(given: object) -> Settings:
    found = Settings.read({KEY: given}, {})
    assert found is not None
    return found


def test_without_settings() -> None:
    assert Settings.read({"other": 1}, {"PATH": "/bin"}) is None
    assert Settings.read({}, {VARIABLE: ""}) is None


def test_configuration_precedes_the_environment() -> None:
    given = {KEY: {"budget": 512, "policy": "ladder:span=15:overlap=0"}}
    environment = {VARIABLE: json.dumps({"budget": "1MiB", "policy": "streaming"})}
    found = Settings.read(given, environment)
    assert found == Settings(Budget(tokens=512), Ladder(span=15, overlap=0))
    found = Settings.read({}, environment)
    assert found == Settings(Budget(num_bytes=2**20), Streaming())


def test_default_policy() -> None:
    assert read({"budget": 99}) == Settings(Budget(tokens=99), parse_policy("balanced"))


def test_the_policy_may_be_an_object() -> None:
    assert read({"budget": 512, "policy": Paper(span=14)}).policy == Paper(span=14)


@pytest.mark.parametrize(
    "given",
    [
        {"budget": 512},
        {"budget": "64MiB", "policy": "recall:window=0.5"},
        {"budget": "1000000B", "policy": "retrieval:heads=1.0+2/3.1"},
        {"policy": GROUPS},
        {"budget": 99, "profile": profile_json(PROFILE)},
    ],
)
def test_json_is_read_again(given: dict[str, Any]) -> None:
    settings = read(given)
    written = settings.to_json()
    assert read(written) == settings
    assert Settings.read({}, {VARIABLE: json.dumps(written)}) == settings


def test_profile_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile_json(PROFILE)))
    assert read({"budget": 99, "profile": str(path)}).profile == PROFILE
    assert read({"budget": 99, "profile": path}).profile == PROFILE
    with pytest.raises(InputError, match=r"cannot read .*missing\.json.*give the path"):
        read({"budget": 99, "profile": str(tmp_path / "missing.json")})
    with pytest.raises(InputError, match=r"profile of .*not a profile.*lacache calibrate"):
        read({"budget": 99, "profile": {"order": []}})


@pytest.mark.parametrize(
    ("policy", "profile", "has_several"),
    [
        ("balanced", PROFILE, True),
        # Without one it is a ladder over all layers.
        ("balanced", None, False),
        ("recall", None, True),
        ("ladder:span=3", None, False),
        ("uniform:span=3", None, False),
        ("retrieval:heads=1.0+2.1/3.1", None, True),
    ],
)
def test_binding(policy: str, profile: HeadProfile | None, has_several: bool) -> None:
    found = Settings(Budget(tokens=200), parse_policy(policy), profile).bind(NUM_HEADS, SLOT)
    # Capacities in tokens depend on neither of the sizes.
    expected = bind_policy(
        parse_policy(policy),
        200,
        ModelShape(NUM_HEADS, profile),
        bytes_per_token=1,
        prompt_tokens=9,
    )
    assert found.groups == expected.groups
    assert (len(found.groups) > 1) == has_several


def test_bytes_are_those_of_all_layers() -> None:
    ladder = Ladder(span=3)
    per_token = SLOT * sum(NUM_HEADS)
    found = Settings(Budget(num_bytes=200 * per_token + SLOT), ladder).bind(NUM_HEADS, SLOT)
    assert found.groups == Settings(Budget(tokens=200), ladder).bind(NUM_HEADS, SLOT).groups


def test_capacities_of_groups() -> None:
    found = read({"policy": GROUPS}).bind(NUM_HEADS, SLOT)
    assert [group.schedule.capacity for group in found.groups] == [64, 40]


def test_as_text() -> None:
    assert str(read({"budget": "2MiB", "policy": "ladder:span=3"})) == (
        "policy ladder:span=3 at budget 2MiB"
    )
    assert str(read({"policy": GROUPS})) == f"policy {parse_policy(GROUPS)}"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "must have a budget; try"),
        ({"policy": "ladder"}, "must have a budget; try"),
        ([512], "must be a dict; try"),
        ({"budget": 0.5}, "budget=0.5 is a share of a prompt.*try budget=512"),
        ({"budget": "0.5"}, "budget=0.5 is a share of a prompt.*try budget=512"),
        ({"budget": "64Mi"}, "'64Mi' must be a number of tokens.*try 512"),
        ({"budget": True}, "budget=True must be a number of tokens.*try 512"),
        ({"budget": 0}, "budget=0 must be at least 1 token; try"),
        ({"budget": 64, "policy": GROUPS}, "budget=64 cannot be given.*leave the budget out"),
        ({"budget": 64, "span": 15}, "no setting 'span'.*ladder:span=15:overlap=0"),
        ({"budget": 64, "preset": "balanced"}, "no setting 'preset'"),
        ({"budget": 64, "policy": "full"}, "policy=full must be bounded; try policy=balanced"),
        (
            {"budget": 64, "policy": "ladder", "profile": profile_json(PROFILE)},
            "policy=ladder needs no head profile; leave profile out",
        ),
        ({"policy": "full"}, "policy=full must be bounded; try policy=balanced"),
        ({"budget": 64, "policy": "lader"}, "policy='lader' must be one of.*try ladder"),
        ({"budget": 64, "policy": "ladder:spam=1"}, "no setting 'spam'"),
        ({"budget": 64, "policy": "ladder:span=4:overlap=4"}, "overlap=4 must be below span=4"),
    ],
)
def test_malformed_settings(given: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(given)


def test_no_budget() -> None:
    with pytest.raises(ConfigError, match="no budget was given; try budget=512"):
        Settings(None, Ladder())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budget": 5, "policy": "ladder"}, "budget=5 must be at least .* try budget="),
        ({"budget": "9KiB", "policy": "ladder"}, "9216 bytes holds 3 tokens .*at least .* try '"),
        ({"budget": 64, "policy": "ladder:span=30"}, "span=30 must be below the number of layers"),
        ({"policy": "groups:0-2@64@ladder/3-5@full"}, "a group without a limit; give it a policy"),
        ({"policy": "groups:0-2@64@ladder"}, "layer 3 is in no group; add 3"),
        (
            {"policy": "groups:0-2@64@streaming/3-5@64@streaming:positions=slots"},
            "groups with positions=slots beside others; give all of them the same",
        ),
    ],
)
def test_settings_that_do_not_work_with_the_model(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(given).bind(NUM_HEADS, SLOT)


@pytest.mark.parametrize("num_heads", [NUM_HEADS[1:], (4,) * LAYERS])
def test_profile_of_another_model(num_heads: tuple[int, ...]) -> None:
    settings = Settings(Budget(tokens=200), parse_policy("balanced"), PROFILE)
    message = (
        f"profile of made has 6 layers with 12 KV heads, and the model has {len(num_heads)} with "
        rf"{sum(num_heads)}; calibrate the model \(lacache calibrate\)"
    )
    with pytest.raises(ConfigError, match=message):
        settings.bind(num_heads, SLOT)


def test_environment_without_json() -> None:
    with pytest.raises(ConfigError, match="must be JSON"):
        Settings.read({}, {VARIABLE: "budget=512"})


@pytest.mark.parametrize("version", ["0.31.0", "0.32.0", "0.32.1+cpu"])
def test_supported_releases(version: str) -> None:
    assert unsupported_reason(version) is None


@pytest.mark.parametrize("version", ["0.30.2", "0.33.0", "1.31.0", "dev", "0.x"])
def test_unsupported_releases(version: str) -> None:
    reason = unsupported_reason(version)
    assert reason is not None
    assert version in reason
    assert "install vLLM 0.31 to 0.32" in reason
