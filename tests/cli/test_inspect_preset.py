import json
from pathlib import Path

import pytest
from lacache.policies.presets import PRESETS, preset_plan

from lacache.cli.inspect_records import groups_record
from tests.cli.conftest import Run

HERE = ("--layers", 30, "--heads", 3, "--seen", 3000)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_shows_what_its_plan_keeps(run: Run, name: str) -> None:
    done = run("inspect", "--preset", name, *HERE, "--budget", 256, "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    plan = preset_plan(name, 256, (3,) * 30, None)
    expected = groups_record(plan, (3,) * 30, 3000, settled=True)
    ours = record.get("head_to_kept") or [[number] * 3 for number in record["layer_to_kept"]]
    assert [[record["kept"][number] for number in heads] for heads in ours] == [
        [expected["kept"][number] for number in heads] for heads in expected["head_to_kept"]
    ]


def test_what_a_profile_would_change_is_said(run: Run) -> None:
    told = {}
    for name in PRESETS:
        done = run("inspect", "--preset", name, *HERE, "--capacity", 256)
        assert done.exit_code == 0, done.output
        told[name] = done.stdout.splitlines()[0]
        assert told[name].startswith(f"Preset {name}: {PRESETS[name].about}.")
    assert "guessed by their depth" in told["global"]
    assert "it is a ladder over all layers" in told["local"]
    assert "it is a ladder over all layers" in told["balanced"]
    assert "profile" not in told["paper"]
    assert "lacache calibrate" in told["global"]


def test_a_window_that_shrinks_shows_both_capacities(run: Run) -> None:
    done = run("inspect", "--preset", "global", *HERE, "-b", 256)
    assert "256, later 64" in done.stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--preset", "globl", "-b", 9), "preset='globl' must be one of balanced, local"),
        (("--preset", "global"), "preset 'global' needs a capacity; try --capacity 512"),
        (("--preset", "global", "-b", 3), "must be at least 20 tokens for preset 'global'"),
        (("--preset", "paper", "-b", 99, "--span", 3), "span cannot be given beside --preset"),
        (("--preset", "paper", "-b", 99, "--policy", "full"), "policy cannot be given beside"),
        (("--preset", "paper", "--plan", "plan.json"), "preset cannot be given beside --plan"),
    ],
)
def test_what_does_not_go_together(run: Run, options: tuple[object, ...], told: str) -> None:
    done = run("inspect", *HERE, *options)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert told in done.stderr


def test_a_plan_that_tells_heads_apart_needs_their_number(run: Run, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    record = {"name": "history", "capacity": 64, "history": [1, [2, 0], [4, 1]], "evict_batch": 4}
    plan.write_text(json.dumps(record))
    done = run("inspect", "--plan", plan, "--layers", 6, "--seen", 500)
    assert done.exit_code == 2
    assert "--heads is not given" in done.stderr
    assert "--heads 2 or more" in done.stderr
    assert run("inspect", "--plan", plan, "--layers", 6, "--seen", 5, "--heads", 2).exit_code == 0
    plan.write_text(json.dumps(record | {"history": [1, 4], "tiers": [[[5, 2]]]}))
    done = run("inspect", "--plan", plan, "--layers", 6, "--seen", 500)
    assert "number 2 of layer 5" in done.stderr
    plan.write_text(json.dumps(record | {"history": [1, 4]}))
    assert run("inspect", "--plan", plan, "--layers", 6, "--seen", 500).exit_code == 0
