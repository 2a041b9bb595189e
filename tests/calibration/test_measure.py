import json
from pathlib import Path
from typing import Any

import pytest

from lacache.calibration import measure
from lacache.calibration.measure import Settings, measure_profile
from lacache.calibration.store import save_profile
from lacache.errors import ConfigError, ModelError, NoDistantTokensError
from lacache.models.fingerprint import fingerprint
from lacache.policies.head_profile import HeadProfile, read_profile
from tests.calibration.test_probes import HAY
from tests.engine.tiny import tiny_llama, tiny_tokenizer

SETTINGS = Settings(window=8, sinks=1, length=760, per_kind=1)
HEARD = {(1, 0), (3, 1)}
STEPS = SETTINGS.num_steps((2,) * 5)


def model_with(heard: set[tuple[int, int]]) -> Any:
    """Five layers of two KV heads, of which only some have a say in what follows."""
    model = tiny_llama(seed=0)
    for number, layer in enumerate(model.model.layers):
        columns = layer.self_attn.o_proj.weight.data.view(32, 2, 16)
        for head in range(2):
            if (number, head) not in heard:
                columns[:, head] = 0.0
    return model


def run(model: Any, journal: Path, **options: Any) -> HeadProfile:
    return measure_profile(
        model, tiny_tokenizer(), HAY, name="tiny", journal=journal, settings=SETTINGS, **options
    )


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> HeadProfile:
    return run(model_with(HEARD), tmp_path_factory.mktemp("whole") / "journal.jsonl")


def test_only_heads_with_an_effect_are_important(profile: HeadProfile) -> None:
    assert profile.num_heads == (2,) * 5
    found = {
        (i, h): value for i, row in enumerate(profile.importance) for h, value in enumerate(row)
    }
    assert {pair for pair, value in found.items() if value != 0.0} == HEARD
    assert profile.loss_left[0] == (0, 1.0)
    assert profile.loss_left[-1] == (10, 0.0)


def test_it_knows_its_model(profile: HeadProfile) -> None:
    assert profile.matches(fingerprint(model_with(HEARD)))
    assert not profile.matches(fingerprint(model_with({(0, 0)})))


def test_an_interrupted_calibration_resumes(tmp_path: Path, profile: HeadProfile) -> None:
    journal = tmp_path / "journal.jsonl"
    model = model_with(HEARD)
    forwards: list[int] = []
    model.register_forward_pre_hook(lambda _module, _args: forwards.append(1))
    steps: list[int] = []

    def stop_in_the_middle(count: int) -> None:
        steps.append(count)
        if sum(steps) > STEPS // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, journal, on_step=stop_in_the_middle)
    before = len(forwards)
    steps.clear()
    assert run(model, journal, on_step=steps.append) == profile
    resumed = len(forwards)
    assert 0 < before < resumed
    assert sum(steps) == STEPS
    assert journal.exists()
    # Nothing that was measured is measured again.
    journal.unlink()
    run(model, journal)
    assert len(forwards) - resumed == resumed


def test_weights_stay_trainable(tmp_path: Path) -> None:
    model = model_with(HEARD)
    run(model, tmp_path / "journal.jsonl")
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    assert model.config._attn_implementation == "sdpa"


def test_a_model_that_does_not_look_back_is_refused(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    with pytest.raises(ModelError, match="makes no use of distant tokens"):
        run(model_with(set()), journal)


def test_a_profile_is_saved_whole(tmp_path: Path, profile: HeadProfile) -> None:
    path = tmp_path / "new" / "profile.json"
    save_profile(profile, path)
    assert read_profile(path) == profile
    assert json.loads(path.read_text())["num_layers"] == 5
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "change",
    [{"window": 0}, {"sinks": -1}, {"per_kind": 0}, {"length": 100}, {"seed": -1}],
)
def test_impossible_settings_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must"):
        Settings(**change)


def test_a_journal_of_another_version_is_started_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, journal = model_with(HEARD), tmp_path / "journal.jsonl"

    def forwards() -> int:
        counted: list[int] = []
        hook = model.register_forward_pre_hook(lambda _module, _args: counted.append(1))
        run(model, journal)
        hook.remove()
        return len(counted)

    whole = forwards()
    assert forwards() < whole / 10
    monkeypatch.setattr(measure.transformers, "__version__", "99")
    assert forwards() == whole


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_losses_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    model = model_with(HEARD)
    model.lm_head.weight.data[0, 0] = value
    journal = tmp_path / "journal.jsonl"
    with pytest.raises(ModelError, match=r"must be finite; load the model with dtype='float32'"):
        run(model, journal)
    assert not journal.exists()


def test_probes_are_no_longer_than_what_the_model_was_trained_on() -> None:
    tokenizer = tiny_tokenizer()
    least = Settings().resolved_length(tokenizer, 10_000)
    assert least > 400  # bytes need more
    assert Settings(length=least + 1).resolved_length(tokenizer, least + 1) == least + 1
    with pytest.raises(ConfigError, match=rf"must be at most {least}, .* try length={least}"):
        Settings(length=least + 1).resolved_length(tokenizer, least)
    for settings in (Settings(), Settings(length=least)):
        with pytest.raises(ConfigError, match=rf"trained on {least - 1} tokens, .* needs {least} "):
            settings.resolved_length(tokenizer, least - 1)
    assert Settings(window=600).resolved_length(tokenizer, 10_000) == 2 * (600 + 4)


def test_default_probes_are_shorter_where_the_model_was_trained_on_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure, "least_length", lambda *_, **__: 300)
    for trained, expected in ((10_000, 400), (350, 350)):
        assert Settings().resolved_length(tiny_tokenizer(), trained) == expected


def test_windows_that_cost_a_little_by_chance_are_not_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In this random model they cost up to 0.07 of the loss, many nats.
    monkeypatch.setattr(measure, "LEAST_SHARE", 0.1)
    with pytest.raises(NoDistantTokensError, match="cost this model next to nothing"):
        run(model_with(HEARD), tmp_path / "journal.jsonl")
