import json
from pathlib import Path
from typing import Any

import pytest

from lacache.common.records import read_records
from lacache.evals.plots.tuning import plot_tuning
from lacache.evals.tuning import search
from lacache.policies import parse_policy
from tests.cli.conftest import Run

TEXT = "".join(f"This is line {i} of a text. It goes on for a while.\n" for i in range(110))
# Two excerpts in each half, so that a search takes seconds; too short for a excerpt more.
QUICK = ("--budget", 200, "--length", 1300, "--threads", 1)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LACACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


@pytest.fixture
def knowing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model knows no answer; take it as one that does."""
    monkeypatch.setattr(search, "GUESS", 1e9)


@pytest.mark.slow
def test_a_search_from_text_to_policy_and_again_from_its_records(
    run: Run, tiny: Path, place: Path, knowing: None
) -> None:
    saved, png = place / "policy.txt", place / "front.png"
    command = ("tune", "--model", tiny, "--text", "text.txt", *QUICK)
    command += ("--policy", "ladder", "--prefer", "text")
    done = run(*command, "--json", "--plot", png, "--save-policy", saved)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    rows = {row["policy"]: row for row in found["policies"]}
    assert set(rows) == {"streaming", "full", "ladder"}
    assert found["capacity"] == 200
    compared = {name: row["compared"] for name, row in rows.items() if row["compared"]}
    best = min(compared, key=lambda name: compared[name]["perplexity"])
    assert found["recommended"]["text"] == best
    assert found["front"][0] == best
    for row in rows.values():
        assert row["held_out"] is None or row["held_out"]["needles"] == 6
    sizes = {name: row["held_out"]["peak_bytes"] for name, row in rows.items() if row["held_out"]}
    assert sizes.pop("full") > max(sizes.values())
    assert str(parse_policy(f"@{saved}")) == best
    assert png.read_bytes().startswith(b"\x89PNG")

    records = read_records(place / "tune.jsonl")
    assert len({record["key"] for record in records}) == len(records)
    measured = sum(record["seconds"] for record in records)
    assert found["seconds"] == pytest.approx(measured, abs=0.1)
    again = run(*command)
    assert again.exit_code == 0, again.output
    assert read_records(place / "tune.jsonl") == records
    shown = again.stdout
    assert "unused for the choice: 2 × 1,300 tokens and 6 other needles" in shown
    assert f"  text: {best} (least perplexity)" in shown
    assert f"LaCache(model, 200, {best!r})" in shown
    value, (low, high) = (
        rows["streaming"]["held_out"][name] for name in ("perplexity", "perplexity_interval")
    )
    assert f"{value:,.2f} [{low:,.2f}, {high:,.2f}]" in shown
    inspected = run(
        *("inspect", "--policy", f"@{saved}", "--budget", 200),
        *("--layers", 5, "--heads", 2, "--seen", 1300),
    )
    assert inspected.exit_code == 0, inspected.output


def test_a_model_that_finds_no_needles_is_refused(run: Run, tiny: Path, place: Path) -> None:
    done = run("tune", "--model", tiny, "--text", "text.txt", *QUICK)
    assert done.exit_code == 2
    assert "does not find needles" in done.stderr
    assert len(read_records(place / "tune.jsonl")) == 1


def test_a_changed_text_is_not_mixed_with_the_old_one(
    run: Run, tiny: Path, place: Path, knowing: None
) -> None:
    command = ("tune", "--model", tiny, "--text", "text.txt", *QUICK, "--policy", "ladder")
    assert run(*command, "--minutes", 0.0001).exit_code == 2
    before = (place / "tune.jsonl").read_bytes()
    (place / "text.txt").write_text(TEXT.replace("while", "wheel"))
    done = run(*command)
    assert done.exit_code == 2
    assert "are not those of the records in" in " ".join(done.stderr.split())
    assert "--out" in done.stderr
    assert (place / "tune.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--budget", "many"), "budget='many'"),
        (("--minutes", 0), "minutes=0"),
        (("--prefer", "speed"), "prefer='speed' must be one of both, text, recall"),
        (("--seed", -1), "seed=-1"),
        (("--threads", 0), "threads=0"),
        (("--plot", "front.jpg"), "front.png"),
        (("--text", "nowhere.txt"), "nowhere.txt"),
        (("--out", "text.txt"), "not JSON"),
    ],
)
def test_bad_options_are_refused_before_a_model_is_loaded(
    run: Run, place: Path, options: tuple[object, ...], told: str
) -> None:
    (place / "no model").mkdir()
    (place / "no model" / "config.json").write_text("{}")
    done = run("tune", "--model", "no model", "--text", "text.txt", "--budget", 200, *options)
    assert done.exit_code == 2
    assert told in done.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--length", 1300, "--budget", 1300), "try --length 5200"),
        (("--length", 1300, "--budget", "10B"), "budget of 10 bytes"),
        (("--length", 2000, "--budget", 200), "too little text to choose"),
        (("--length", 1, "--budget", 200), "length=1"),
        (("--length", 1300, "--budget", 200, "--policy", "tova"), "policy tova is a baseline"),
        (("--length", 1300, "--budget", 200, "--policy", "lader"), "lader"),
        (("--length", 1300, "--budget", 200, "--policy", "streaming"), "nothing is left"),
    ],
)
def test_what_does_not_fit_model_or_text_is_refused(
    run: Run, tiny: Path, knowing: None, options: tuple[object, ...], told: str
) -> None:
    done = run("tune", "--model", tiny, "--text", "text.txt", "--threads", 1, *options)
    assert done.exit_code == 2
    assert told in " ".join(done.stderr.split())


def test_other_records_are_not_drawn(place: Path) -> None:
    from lacache.errors import InputError

    with pytest.raises(InputError, match="kind 'ppl' is not one of lacache tune"):
        plot_tuning({"kind": "ppl"}, place / "front.png")
