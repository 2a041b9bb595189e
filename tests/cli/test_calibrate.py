import json
from pathlib import Path

import pytest

from lacache.cli import calibrate as command
from lacache.policies.head_profile import find_profile, parse_profile, read_profile
from tests.calibration.test_probes import HAY
from tests.cli.conftest import Run

QUICK = ("--window", 8, "--sinks", 1, "--length", 760, "--probes", 1, "--threads", 1)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LACACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "hay.txt").write_text(HAY)
    return tmp_path


def test_the_profile_is_stored_where_it_is_found_again(run: Run, tiny: Path, home: Path) -> None:
    png = home / "importance.png"
    done = run(
        "calibrate", "--model", tiny, "--text", home / "hay.txt", *QUICK, "--json", "--plot", png
    )
    assert done.exit_code == 0, done.output
    (stored,) = (home / "home" / "profiles").glob("*.json")
    profile = parse_profile(json.loads(done.stdout), "output")
    assert stored.name == f"{profile.fingerprint}.json"
    assert read_profile(stored) == profile
    assert find_profile(profile.fingerprint, [stored.parent]) == profile
    assert profile.window == 8
    assert profile.sinks == 1
    assert len(profile.order) == 10
    assert len(list(stored.parent.iterdir())) == 2  # and the lock
    assert "Calibrating tiny: about " in done.stderr
    assert f"wrote {stored}" in done.stderr
    assert png.read_bytes().startswith(b"\x89PNG")


def test_the_tables_show_the_most_important_first(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    order = ((1, 1), (0, 0), (1, 0), (0, 1))
    loss_left = ((0, 1.0), (1, 0.25), (4, 0.0))
    importance = ((0.5, 0.0), (0.125, 0.75))
    profile = command.HeadProfile("a-b", "tiny", 64, 4, importance, order, loss_left)
    command._show(profile)
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines()]
    assert rows.index(["1", "1", "0.750"]) + 1 == rows.index(["0", "0", "0.500"])
    assert ["1", "25%", "0.250"] in rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--window", 0), "window=0 must be at least 1; try window=1"),
        (("--probes", 0), "probes=0 must be at least 1; try probes=1"),
        (("--length", 100), "length=100 must be at least 136 = 2 × (window 64 + sinks 4); try"),
        (("--plot", "picture.jpg"), "picture.png"),
        (("--threads", 0), "threads=0"),
    ],
)
def test_bad_options_are_refused_before_a_model_is_loaded(
    run: Run, home: Path, options: tuple[object, ...], message: str
) -> None:
    (home / "no model").mkdir()
    (home / "no model" / "config.json").write_text("{}")
    done = run("calibrate", "--model", home / "no model", *options)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (home / "home").exists()


def test_a_file_of_its_own(run: Run, tiny: Path, home: Path) -> None:
    text, out = home / "hay.txt", home / "new" / "mine.json"
    done = run("calibrate", "--model", tiny, "--text", text, *QUICK, "--out", out)
    assert done.exit_code == 0, done.output
    assert "Most important KV heads" in done.stdout
    assert read_profile(out).model == "tiny"
    assert not list((home / "home" / "profiles").glob("*.json"))
