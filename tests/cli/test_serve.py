"""`lacache serve` becomes vLLM's server, or says what is wrong before that."""

import json
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from lacache.calibration.store import profile_path, save_profile
from lacache.integrations.vllm import serving
from lacache.integrations.vllm.settings import Settings
from lacache.models.fingerprint import fingerprint
from lacache.policies import parse_budget, parse_policy
from lacache.policies.head_profile import SHIPPED, profile_json, read_profile
from tests.cli.conftest import Run
from tests.cli.test_head_profile import made_profile
from tests.engine.tiny import tiny_llama


class Started(Exception):
    """The process would be another one now."""


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []

    def execve(path: str, arguments: list[str], environment: dict[str, str]) -> None:
        found.extend([path, arguments, environment])
        raise Started

    monkeypatch.setattr(serving.os, "execve", execve)
    monkeypatch.setattr(serving, "version", lambda name: "0.32.0")
    monkeypatch.setattr(serving.torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("LACACHE_API_KEY", raising=False)
    return found


@pytest.fixture
def calibrated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """The head profile of the tiny model, which is stored."""
    monkeypatch.setenv("LACACHE_HOME", str(tmp_path / "home"))
    profile = made_profile(fingerprint(tiny_llama()))
    save_profile(profile, profile_path(profile.fingerprint))
    return profile_json(profile)


def test_the_process_becomes_vllms_server(run: Run, tiny: Path, became: list[Any]) -> None:
    policy = "ladder:span=2:window_layers=0-1"
    options = ("--budget", 256, "--policy", policy)
    result = run("serve", "--engine", "vllm", "--model", tiny, *options, "--", "--seed", 1)
    assert isinstance(result.exception, Started)
    path, arguments, environment = became
    assert path == arguments[0] == sys.executable
    assert arguments[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    named = dict(zip(arguments[3::2], arguments[4::2], strict=True))
    settings = {"budget": "256", "policy": policy}
    assert json.loads(named.pop("--additional-config")) == {"lacache": settings}
    assert named == {
        "--model": str(tiny),
        "--served-model-name": "tiny",
        "--max-model-len": "131072",
        "--max-num-batched-tokens": "8192",
        "--host": "127.0.0.1",
        "--port": "8000",
        "--dtype": "auto",
        "--seed": "1",
    }
    assert environment["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] == "1"


def test_options_after_dashes_override_defaults(run: Run, tiny: Path, became: list[Any]) -> None:
    run(
        "serve",
        "--engine",
        "vllm",
        "--model",
        tiny,
        "--",
        "--max-model-len=99",
        "--served_model_name",
        "x",
    )
    assert "131072" not in became[1]
    assert "tiny" not in became[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("own",), "engine='own' must be 'lacache' or 'vllm'"),
        (("vllm", "--host", "0.0.0.0"), "set LACACHE_API_KEY"),
        (("vllm", "--max-sequences", 2), "--max-sequences cannot be given with --engine vllm"),
        (("vllm", "--", "--host=0.0.0.0"), "--host cannot be given after --"),
        (("vllm", "--budget", 0), "budget=0 must be at least 1"),
        (("vllm", "--budget", 0.5), "budget=0.5 is a share of a prompt"),
        (("vllm", "--policy", "full"), "policy=full must be bounded"),
        (("vllm", "--policy", "groups:0-11@64@full"), "cannot be given with policy"),
        (("vllm", "--model", "no/such/model"), "does not exist"),
        (("vllm", "--", "--model", "other"), "--model cannot be given after --"),
        (("vllm", "--", "--additional-config={}"), "--additional-config cannot be given after --"),
        (("lacache", "--", "--seed", 1), "--seed after -- is an option of vLLM"),
        (("lacache", "--budget", 0.5), "budget=0.5 is a share of a prompt"),
        (("lacache", "--host", "0.0.0.0"), "set LACACHE_API_KEY"),
        (("lacache", "--also", 0.5), "budget=0.5 is a share of a prompt"),
        (
            ("lacache", "--also", 64, "--policy", "groups:0-11@64@streaming"),
            "cannot be given with policy",
        ),
        (("lacache", "--policy", "full"), "policy='full' keeps every token"),
        (("lacache", "--memory", 5), "--memory=5 must be a number of bytes; try --memory 1GiB"),
        (("lacache", "--disk", "much"), "--disk=much must be a number of bytes"),
        (("lacache", "--disk", "1GiB"), "--disk 1GiB needs a folder"),
        (("lacache", "--also", 64, "--also", 64), "has a budget twice"),
        (("vllm", "--folder", "x"), "--folder cannot be given with --engine vllm"),
        (("vllm", "--also", 64), "--also cannot be given with --engine vllm"),
    ],
)
def test_invalid_options_are_refused(
    run: Run, became: list[Any], arguments: tuple[object, ...], message: str
) -> None:
    result = run("serve", "--engine", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not became


def test_the_head_profile_travels_with_the_settings(
    run: Run, tiny: Path, became: list[Any], calibrated: dict[str, Any]
) -> None:
    run("serve", "--engine", "vllm", "--model", tiny, "--budget", "64KiB")
    named = dict(zip(became[1][3::2], became[1][4::2], strict=True))
    (settings,) = json.loads(named["--additional-config"]).values()
    assert settings == {"budget": "64KiB", "policy": "balanced", "profile": calibrated}


def test_steps_are_as_long_as_costs_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short for a history that grows fast; long where a page is large beside the budget."""
    monkeypatch.setattr(serving.torch.cuda, "is_available", lambda: False)
    profile = read_profile(SHIPPED / "smollm2-135m-instruct.json")

    def steps(budget: int, policy: str = "balanced") -> int:
        given = profile if policy == "balanced" else None
        settings = Settings(parse_budget(budget), parse_policy(policy), given)
        return serving.most_tokens_in_step(settings.bind(profile.num_heads, 256))

    assert steps(512) == 256
    assert 256 < steps(2048) < 8192
    assert steps(64) == 8192
    assert steps(512, "ladder") == 8192


def test_steps_hold_all_sequences(
    run: Run, tiny: Path, became: list[Any], calibrated: dict[str, Any]
) -> None:
    options = ("serve", "--engine", "vllm", "--model", tiny, "--budget", 1024, "--policy", "ladder")
    run(*options, "--", "--max-num-seqs=9000")
    assert became[1][became[1].index("--max-num-batched-tokens") + 1] == "18000"
    became.clear()
    run(*options, "--", "--no-enable-chunked-prefill")
    assert "--max-num-batched-tokens" not in became[1]


def test_the_api_key_is_passed_to_vllm(
    run: Run, tiny: Path, became: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LACACHE_API_KEY", "secret")
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    run("serve", "--engine", "vllm", "--host", "0.0.0.0", "--model", tiny)
    assert became[2]["VLLM_API_KEY"] == "secret"
    assert became[2]["VLLM_PLUGINS"] == "other,lacache"


def test_a_ladder_that_does_not_fit_the_model(run: Run, tiny: Path, became: list[Any]) -> None:
    result = run("serve", "--engine", "vllm", "--model", tiny, "--policy", "ladder:span=99")
    assert result.exit_code == 2
    assert "span=99 must be below the number of layers" in result.stderr
    assert not became


def test_without_vllm(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(serving, "version", version)
    result = run("serve", "--engine", "vllm", "--model", tiny)
    assert result.exit_code == 2
    assert "vLLM is not installed" in result.stderr


def test_with_another_vllm(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "version", lambda name: "0.20.0")
    result = run("serve", "--engine", "vllm", "--model", tiny)
    assert result.exit_code == 2
    assert "vLLM 0.20.0 is not supported; install vLLM 0.31 to 0.32" in result.stderr
