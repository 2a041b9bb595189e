"""Commands calibrate a model that they see for the first time, unless an option forbids it."""

from pathlib import Path
from typing import Any

import pytest

from lacache.calibration import calibrate as module
from lacache.calibration.store import (
    profile_path,
    read_refusal,
    save_profile,
    write_refusal,
)
from lacache.errors import (
    ConfigError,
    InputError,
    NoDistantTokensError,
    UnsupportedOperationError,
)
from lacache.models.fingerprint import fingerprint, model_profile
from lacache.policies.head_profile import HeadProfile, read_profile
from tests.calibration.test_measure import SETTINGS
from tests.cli.conftest import Run
from tests.engine.tiny import save_tiny, tiny_llama

PAIRS = tuple((layer, head) for layer in range(5) for head in range(2))
REASON = "windows cost this model nothing"
UNASKED = "Calibrating tiny: about 30 s once, since policy {} needs its retrieval heads"
TEXT = "".join(f"The {n}th line tells of {n * n} things. It goes on.\n" for n in range(130))
COMMANDS = {
    "generate": ("hi", "-n", 3, "--budget", 64),
    "chat": ("-n", 3, "--budget", 200),
    "serve": ("--port", 0, "--budget", 64),
    "eval": ("--tasks", "ppl:text=text.txt", "--policy", "balanced", "-b", 64, "--lengths", 80),
    "demo": ("--text", "text.txt", "--tokens", 100, "--budget", 48, "--new-tokens", 2),
    "tune": ("--text", "text.txt", "--budget", 200, "--length", 1300),
}


def made_profile(model_fingerprint: str) -> HeadProfile:
    importance = ((0.1, 0.1),) * 5
    return HeadProfile(model_fingerprint, "made", 64, 4, importance, PAIRS, ((0, 1.0),))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LACACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LACACHE_CALIBRATE")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models that were measured, by a measurement that takes no time."""
    names: list[str] = []

    def measure(model: Any, *_: Any, name: str, on_start: Any, **__: Any) -> HeadProfile:
        names.append(name)
        on_start(30.0)
        return made_profile(fingerprint(model))

    monkeypatch.setattr(module, "measure_profile", measure)
    return names


@pytest.fixture
def stopped_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """End `serve` when it would listen, and `tune` when it would search."""
    monkeypatch.setattr("lacache.server.start.run", lambda *_, **__: None)

    class Search:
        def __init__(self, *_: Any) -> None:
            raise InputError("searched")

    monkeypatch.setattr("lacache.evals.tuning.search.Search", Search)


def start(run: Run, command: str, model: Path, *options: object) -> Any:
    done = run(command, *COMMANDS[command], "--model", model, "--threads", 1, *options, input="hi")
    if command == "tune":
        assert "searched" in done.stderr
    else:
        assert done.exit_code == 0, done.output
    return done


@pytest.mark.usefixtures("stopped_commands")
@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_calibrates_once(run: Run, tiny: Path, command: str, calls: list[str]) -> None:
    done = start(run, command, tiny)
    assert UNASKED.format("balanced") in done.stderr
    path = profile_path(fingerprint(tiny_llama()))
    assert read_profile(path).order == PAIRS
    assert "Calibrating" not in start(run, command, tiny).stderr
    assert calls == ["tiny"]


@pytest.mark.usefixtures("stopped_commands")
@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_of_each_command_forbids_it(
    run: Run, tiny: Path, place: Path, command: str, calls: list[str]
) -> None:
    done = start(run, command, tiny, "--no-calibrate")
    expected = "tiny has no head profile (--no-calibrate): policy balanced works without knowing"
    assert done.stderr.count(expected) == 1
    assert not calls
    assert not (place / "home" / "profiles").exists()


def test_the_environment_can_forbid_it_too(
    run: Run, tiny: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LACACHE_CALIBRATE", "0")
    assert "profile" not in start(run, "generate", tiny).stderr
    assert not calls
    start(run, "generate", tiny, "--calibrate")
    assert calls == ["tiny"]


@pytest.mark.parametrize("policy", ["ladder", "streaming", "retrieval:heads=1.0+2:window=0.5"])
def test_a_policy_that_needs_no_profile_calibrates_nothing(
    run: Run, tiny: Path, calls: list[str], policy: str
) -> None:
    start(run, "generate", tiny, "--policy", policy)
    assert not calls


def test_a_real_calibration_is_used(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Settings", lambda: SETTINGS)
    assert "Calibrating tiny: about" in start(run, "generate", tiny).stderr
    profile = read_profile(profile_path(fingerprint(tiny_llama())))
    assert profile.model == "tiny"
    assert profile.window == SETTINGS.window
    assert model_profile(tiny_llama()) == profile


def test_an_interrupted_one_resumes_with_the_same_command(
    run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "Settings", lambda: SETTINGS)
    real = module.measure_profile
    steps: list[int] = []

    def interrupted(*arguments: Any, on_step: Any, **options: Any) -> HeadProfile:
        def stop(count: int) -> None:
            steps.append(count)
            if len(steps) == 6:
                raise KeyboardInterrupt

        return real(*arguments, on_step=stop, **options)

    monkeypatch.setattr(module, "measure_profile", interrupted)
    done = run("generate", *COMMANDS["generate"], "--model", tiny)
    assert done.exit_code == 130
    assert "the next calibration with the same settings resumes" in done.stderr
    assert done.stderr.endswith("stopped\n")
    fingerprinted = fingerprint(tiny_llama())
    (journal,) = profile_path(fingerprinted).parent.glob(f"{fingerprinted}*.jsonl")
    kept = journal.read_text()
    assert kept.count('"key"') == 7  # the text, and as many measurements as steps
    monkeypatch.setattr(module, "measure_profile", real)
    seen: list[str] = []
    monkeypatch.setattr(module, "save_profile", lambda *_: seen.append(journal.read_text()))
    start(run, "generate", tiny)
    assert seen[0].startswith(kept)


def test_the_profile_of_other_weights_is_not_enough(run: Run, tiny: Path, calls: list[str]) -> None:
    other = made_profile(fingerprint(tiny_llama(seed=1)))
    assert other.resembles(fingerprint(tiny_llama()))
    save_profile(other, profile_path(other.fingerprint))
    start(run, "generate", tiny)
    assert calls == ["tiny"]


@pytest.mark.parametrize("similar", [False, True])
def test_a_model_that_cannot_be_calibrated_is_used_without_and_not_tried_again(
    run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch, similar: bool
) -> None:
    tried: list[int] = []

    def fail(*_: Any, **__: Any) -> HeadProfile:
        tried.append(1)
        raise NoDistantTokensError(REASON)

    monkeypatch.setattr(module, "measure_profile", fail)
    expected = f"tiny has no head profile ({REASON}): policy balanced "
    if similar:
        other = made_profile(fingerprint(tiny_llama(seed=1)))
        save_profile(other, profile_path(other.fingerprint))
        expected += "uses that of made, of equal shape\n"
    else:
        expected += "works without knowing its retrieval heads\n"
    assert expected in start(run, "generate", tiny).stderr
    assert expected in start(run, "generate", tiny).stderr
    assert len(tried) == 1
    assert read_refusal(fingerprint(tiny_llama())) == REASON
    # The explicit command tries again, and so does another version.
    assert run("calibrate", "--model", tiny).exit_code == 2
    monkeypatch.setattr("lacache.calibration.store.__version__", "99")
    start(run, "generate", tiny)
    assert len(tried) == 3


def test_a_success_deletes_the_refusal(run: Run, tiny: Path, calls: list[str]) -> None:
    write_refusal(fingerprint(tiny_llama()), REASON)
    assert run("calibrate", "--model", tiny).exit_code == 0
    assert calls == ["tiny"]
    assert read_refusal(fingerprint(tiny_llama())) is None


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("out of memory"),
        InputError("out of space"),
        ConfigError("too short"),
        UnsupportedOperationError("needs eager"),
    ],
)
def test_other_failures_end_no_command_and_are_not_remembered(
    run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> HeadProfile:
        raise error

    monkeypatch.setattr(module, "measure_profile", fail)
    assert f"tiny has no head profile ({error})" in start(run, "generate", tiny).stderr
    assert read_refusal(fingerprint(tiny_llama())) is None


def test_a_home_that_cannot_be_written_ends_no_command(run: Run, tiny: Path, place: Path) -> None:
    (place / "home").write_text("a file")
    done = start(run, "generate", tiny)
    assert "tiny has no head profile (cannot write " in done.stderr


def test_what_was_mistyped_is_refused_before(run: Run, place: Path, calls: list[str]) -> None:
    mute = save_tiny(place / "mute", chat_template=None)
    done = run("generate", "hi", "--chat", "--model", mute)
    assert done.exit_code == 2
    assert "has no chat template" in done.stderr
    assert not calls
