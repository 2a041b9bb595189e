"""A calibration is made once, kept, resumed, and shared by those who wait for it."""

import json
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import lacache
from lacache.calibration import calibrate as module
from lacache.calibration import measure
from lacache.calibration.calibrate import calibrate
from lacache.calibration.measure import Settings
from lacache.calibration.store import lock_path, profile_path
from lacache.errors import ConfigError, HeadProfileWarning, InputError, ModelError
from lacache.models.fingerprint import fingerprint
from lacache.policies.head_profile import HeadProfile, profile_json, read_profile
from tests.calibration.test_measure import HEARD, SETTINGS, model_with
from tests.calibration.test_probes import HAY
from tests.engine.tiny import tiny_tokenizer


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LACACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def run(model: Any, **options: Any) -> HeadProfile:
    return calibrate(model, tiny_tokenizer(), **{"settings": SETTINGS, "haystack": HAY} | options)


def count_forwards(model: Any) -> list[int]:
    forwards: list[int] = []
    model.register_forward_pre_hook(lambda _module, _args: forwards.append(1))
    return forwards


def test_it_is_stored_where_caches_find_it(capsys: pytest.CaptureFixture[str]) -> None:
    model = model_with(HEARD)
    profile = run(model)
    path = profile_path(fingerprint(model))
    assert read_profile(path) == profile
    assert sorted(path.parent.iterdir()) == [lock_path(fingerprint(model)), path]
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Calibrating LlamaForCausalLM: about " in shown.err
    with warnings.catch_warnings():
        warnings.simplefilter("error", HeadProfileWarning)
        cache = lacache.LaCache(model, 64)
    assert cache.policy.shape.profile == profile


def journals(model: Any) -> list[Path]:
    """The files of unfinished calibrations of a model."""
    return list(profile_path(fingerprint(model)).parent.glob(f"{fingerprint(model)}*.jsonl"))


def test_it_is_measured_once_or_again_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    model = model_with(HEARD)
    forwards = count_forwards(model)
    profile = run(model, progress=False)
    measured = len(forwards)
    assert run(model) == profile
    assert len(forwards) == measured
    assert capsys.readouterr().err == ""
    assert run(model, again=True, progress=False) == profile
    assert len(forwards) == 2 * measured


def test_a_path_of_its_own_leaves_the_folder_of_profiles_alone(tmp_path: Path) -> None:
    model, path = model_with(HEARD), tmp_path / "mine.json"
    profile = run(model, path=path)
    assert read_profile(path) == profile
    assert not profile_path(fingerprint(model)).exists()
    forwards = count_forwards(model)
    assert run(model, path=path) == profile
    assert not forwards


def test_an_interrupted_one_resumes_with_the_same_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_with(HEARD)
    forwards = count_forwards(model)
    whole = run(model, haystack=None)
    num_whole = len(forwards)
    profile_path(fingerprint(model)).unlink()
    forwards.clear()

    def stop(_module: Any, _args: Any) -> None:
        if len(forwards) == 3 * num_whole // 4:
            raise KeyboardInterrupt

    hook = model.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        run(model, haystack=None)
    assert "the next calibration with the same settings resumes" in capsys.readouterr().err
    hook.remove()

    def refuse(*_: Any, **__: Any) -> str:
        raise AssertionError("sampled again")

    monkeypatch.setattr(measure, "sample_haystack", refuse)
    forwards.clear()
    assert run(model, haystack=None) == whole
    assert len(forwards) < num_whole / 2
    assert not journals(model)


def test_of_two_at_once_one_measures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun, waiting = threading.Event(), threading.Event()
    measured: list[int] = []
    real_measure, real_lock = module.measure_profile, module.waiting_lock

    def measure_late(*arguments: Any, **options: Any) -> HeadProfile:
        begun.set()
        assert waiting.wait(60)
        measured.append(1)
        return real_measure(*arguments, **options)

    def lock(path: Path, on_wait: Any) -> Any:
        def wait() -> None:
            on_wait()
            waiting.set()

        return real_lock(path, wait)

    monkeypatch.setattr(module, "measure_profile", measure_late)
    monkeypatch.setattr(module, "waiting_lock", lock)
    found: list[HeadProfile] = []
    first = threading.Thread(target=lambda: found.append(run(model_with(HEARD))))
    second = threading.Thread(target=lambda: found.append(run(model_with(HEARD))))
    first.start()
    assert begun.wait(60)
    second.start()
    first.join()
    second.join()
    assert len(measured) == 1
    assert found[0] == found[1]
    assert "Another process is calibrating this model: waiting" in capsys.readouterr().err


def test_again_measures_with_its_own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_with(HEARD)
    path = profile_path(fingerprint(model))
    real = module.waiting_lock

    @contextmanager
    def lock(*arguments: Any) -> Iterator[None]:
        with real(*arguments):
            # Another process wrote this while the lock was held.
            path.write_text(json.dumps(profile_json(others)))
            yield

    others = replace(run(model), window=9)
    monkeypatch.setattr(module, "waiting_lock", lock)
    assert run(model, again=True).window == SETTINGS.window
    assert read_profile(path).window == SETTINGS.window


def test_the_default_length_grows_with_the_tokens_of_a_word() -> None:
    model = model_with(HEARD)
    lengths: list[int] = []
    model.register_forward_pre_hook(
        lambda _module, _args, options: lengths.append(options["input_ids"].shape[1]),
        with_kwargs=True,
    )
    run(model, settings=Settings(window=8, sinks=1))
    assert 400 < max(lengths) < 800


def test_sampling_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    model = model_with(HEARD)
    run(model, haystack=None, name="tiny")
    first, second = capsys.readouterr().err.splitlines()[:2]
    assert first == "Sampling text from tiny"
    assert second.startswith("Calibrating tiny: about ")


def test_a_lock_that_cannot_be_taken_is_refused() -> None:
    model = model_with(HEARD)
    lock_path(fingerprint(model)).mkdir(parents=True)
    with pytest.raises(InputError, match=r"cannot write .*\.lock: .*; set LACACHE_HOME"):
        run(model)


def test_errors_of_the_block_under_the_lock_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> HeadProfile:
        raise BrokenPipeError("stderr is closed")

    monkeypatch.setattr(module, "measure_profile", fail)
    with pytest.raises(BrokenPipeError):
        run(model_with(HEARD))


def test_a_length_that_is_too_short_leaves_nothing_behind(home: Path) -> None:
    model = model_with(HEARD)
    with pytest.raises(ConfigError, match="try length="):
        run(model, settings=Settings(window=8, sinks=1, length=140))
    assert list((home / "profiles").iterdir()) == [lock_path(fingerprint(model))]


def test_a_model_that_makes_no_use_of_it_leaves_nothing_behind(home: Path) -> None:
    model = model_with(set())
    with pytest.raises(ModelError, match="makes no use of distant tokens"):
        run(model)
    assert list((home / "profiles").iterdir()) == [lock_path(fingerprint(model))]


def test_a_home_that_is_a_file_is_refused(home: Path) -> None:
    home.write_text("")
    with pytest.raises(InputError, match="set LACACHE_HOME to a folder"):
        run(model_with(HEARD))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (17.2, "17 s"), (64, "60 s"), (130, "2 min"), (5000, "83 min"), (9000, "2 h")],
)
def test_times_are_rounded(seconds: float, text: str) -> None:
    assert module._about(seconds) == f"about {text}"


def test_slow_types_are_avoided_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    types: list[torch.dtype] = []
    real = module.measure_profile

    def look(model: Any, *arguments: Any, **options: Any) -> HeadProfile:
        types.append(model.dtype)
        return real(model, *arguments, **options)

    monkeypatch.setattr(module, "measure_profile", look)
    model = model_with(HEARD).to(torch.bfloat16)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    places = [weight.data_ptr() for weight in model.parameters()]
    profile = run(model)
    assert types == [torch.float32]
    assert profile.matches(fingerprint(model))
    for name, weight in model.named_parameters():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, before[name])
    # An engine that was made before shares them.
    assert [weight.data_ptr() for weight in model.parameters()] == places
    size = sum(weight.numel() for weight in model.parameters())
    monkeypatch.setattr("lacache.models.arithmetic.physical_bytes", lambda: 2 * 6 * size)
    run(model, again=True)
    assert types == 2 * [torch.float32]
    monkeypatch.setattr("lacache.models.arithmetic.physical_bytes", lambda: 2 * 6 * size - 2)
    run(model, again=True)
    assert types == [torch.float32, torch.float32, torch.bfloat16]


def test_other_settings_leave_an_interrupted_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_with(HEARD)
    real = module.measure_profile

    def stop(_count: int) -> None:
        raise KeyboardInterrupt

    def interrupted(*arguments: Any, **options: Any) -> HeadProfile:
        return real(*arguments, **options | {"on_step": stop})

    monkeypatch.setattr(module, "measure_profile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(model, progress=False)
    kept = journals(model)
    assert len(kept) == 1
    for settings in (replace(SETTINGS, seed=1), replace(SETTINGS, length=20)):
        with pytest.raises((KeyboardInterrupt, ConfigError)):
            run(model, settings=settings, progress=False)
    assert len(journals(model)) == 2
    assert set(kept) <= set(journals(model))
    monkeypatch.setattr(module, "measure_profile", real)
    run(model, progress=False)
    assert not journals(model)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ModelError):
        run(tiny_tokenizer())


def test_what_is_no_tokenizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="tokenizer=None must be the model's tokenizer"):
        calibrate(model_with(HEARD), None)


def test_inference_mode_is_no_hindrance() -> None:
    model = model_with(HEARD)
    with torch.inference_mode():
        measured = run(model, progress=False)
    assert run(model, again=True, progress=False) == measured
