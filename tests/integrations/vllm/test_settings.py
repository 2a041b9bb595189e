"""The plugin's settings, their errors, and the supported releases of vLLM."""

import json

import pytest

from lacache.errors import ConfigError
from lacache.integrations.vllm.settings import KEY, VARIABLE, Settings, unsupported_reason
from lacache.policies import Ladder, Paper, Streaming


def test_without_settings() -> None:
    assert Settings.read({"other": 1}, {"PATH": "/bin"}) is None
    assert Settings.read({}, {VARIABLE: ""}) is None


def test_configuration_precedes_the_environment() -> None:
    given = {KEY: {"budget": 512, "policy": "ladder:span=15:overlap=0"}}
    environment = {VARIABLE: json.dumps({"budget": 256, "policy": "streaming"})}
    assert Settings.read(given, environment) == Settings(512, Ladder(span=15, overlap=0))
    assert Settings.read({}, environment) == Settings(256, Streaming())
    assert Settings.read({KEY: {"budget": 99}}, {}) == Settings(99, Ladder())


def test_the_policy_may_be_an_object() -> None:
    given = {KEY: {"budget": 512, "policy": Paper(span=14)}}
    assert Settings.read(given, {}) == Settings(512, Paper(span=14))


def test_schedule() -> None:
    ladder = Ladder(span=15, overlap=0, evict_batch=7, sinks=2)
    assert Settings(512, ladder).schedule(30) == ladder.schedule(30, 512)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "must have a budget"),
        ([512], "must be a dict"),
        ({"budget": 0.5}, "must be a number of tokens"),
        ({"budget": "64MiB"}, "must be a number of tokens"),
        ({"budget": True}, "must be a number of tokens"),
        ({"budget": 0}, "at least 1"),
        ({"budget": 64, "span": 15}, "no setting 'span'.*ladder:span=15:overlap=0"),
        ({"budget": 64, "preset": "balanced"}, "no setting 'preset'"),
        ({"budget": 64, "policy": "balanced"}, "policy=balanced is not supported.*try policy=lad"),
        ({"budget": 64, "policy": "groups:0@9@streaming"}, "is not supported"),
        ({"budget": 64, "policy": "full"}, "policy=full must be bounded"),
        ({"budget": 64, "policy": "lader"}, "policy='lader' must be one of"),
        ({"budget": 64, "policy": "ladder:spam=1"}, "no setting 'spam'"),
        ({"budget": 64, "policy": "ladder:span=4:overlap=4"}, "overlap=4 must be below span=4"),
    ],
)
def test_malformed_settings(given: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings.read({KEY: given}, {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(5), "capacity=5 must be at least"),
        (Settings(64, Ladder(span=30)), "span=30 must be below the number of layers"),
    ],
)
def test_settings_that_do_not_work_with_the_model(settings: Settings, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings.schedule(30)


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
