"""What vLLM is told, and what is wrong with it."""

import json

import pytest

from lacache.errors import ConfigError
from lacache.integrations.vllm.settings import KEY, VARIABLE, Settings
from lacache.policies.ladder import Ladder


def test_nothing_said_is_no_settings() -> None:
    assert Settings.read({"other": 1}, {"PATH": "/bin"}) is None
    assert Settings.read({}, {VARIABLE: ""}) is None


def test_configuration_comes_before_the_environment() -> None:
    said = {KEY: {"budget": 512, "span": 15, "overlap": 0}}
    environment = {VARIABLE: json.dumps({"budget": 256, "policy": "streaming"})}
    assert Settings.read(said, environment) == Settings(512, "ladder", {"span": 15, "overlap": 0})
    assert Settings.read({}, environment) == Settings(256, "streaming", {})


def test_schedule_is_the_one_of_the_configuration() -> None:
    settings = Settings(512, "ladder", {"span": 15, "overlap": 0, "evict_batch": 7, "sinks": 2})
    expected = Ladder(capacity=512, span=15, overlap=0, evict_batch=7, sinks=2)
    schedule = settings.schedule(30)
    assert schedule.config == expected  # type: ignore[attr-defined]
    assert Settings(512).schedule(30).config.evict_batch == 64  # type: ignore[attr-defined]
    assert Settings(512, "streaming").schedule(30).config.evict_batch == 64  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, "must have a budget"),
        ([512], "must be a dict"),
        ({"budget": 0.5}, "must be a number of tokens"),
        ({"budget": "64MiB"}, "must be a number of tokens"),
        ({"budget": True}, "must be a number of tokens"),
        ({"budget": 0}, "at least 1"),
        ({"budget": 64, "preset": "balanced"}, "has a preset"),
    ],
)
def test_what_is_no_settings(said: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings.read({KEY: said}, {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(64, "ladder", {"spam": 1}), "no spam"),
        (Settings(64, "history"), "must be one of"),
        (Settings(64, "full"), "must be bounded"),
        (Settings(5, "ladder"), "capacity=5 must be at least"),
        (Settings(64, "ladder", {"span": 4, "overlap": 4}), "overlap=4 must be below span=4"),
    ],
)
def test_what_cannot_work(settings: Settings, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings.schedule(30)


def test_environment_that_is_no_json() -> None:
    with pytest.raises(ConfigError, match="must be JSON"):
        Settings.read({}, {VARIABLE: "budget=512"})
