import json
import os
from pathlib import Path
from typing import Any

import pytest

from lacache.common.records import read_record
from lacache.evals.compare import compare, conclusions
from lacache.evals.runner import EvalRunner
from lacache.policies import Ladder, ModelShape
from tests.cli.conftest import Run

SMALLEST = Ladder().smallest_capacity(ModelShape.of_layers(5))
FILES = ["demo.json", "ladder.png", "memory.png", "perplexity.png"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"The {n}th line tells of {n * n} things.\n" for n in range(60)))
    return path


@pytest.fixture
def demo(run: Run, tiny: Path, text: Path, tmp_path: Path) -> Run:
    """The demo on a tiny model and a short text, with room for more options."""

    def invoke(*arguments: object) -> Any:
        options = {
            "--model": tiny,
            "--text": text,
            "--tokens": 300,
            "--budget": 48,
            "--chunk-size": 8,
            "--new-tokens": 5,
            "--out": tmp_path / "out",
        }
        given = dict(zip(arguments[::2], arguments[1::2], strict=True))
        flat = [part for pair in (options | given).items() for part in pair if part is not None]
        return run("demo", *flat)

    return invoke


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_it_reads_compares_draws_prints_and_goes_on(demo: Run, tmp_path: Path) -> None:
    result = demo()
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir(tmp_path / "out")) == FILES
    record = read_record(tmp_path / "out" / "demo.json")
    runs = record["runs"]
    assert [r["policy"]["name"] for r in runs] == ["full", "streaming", "balanced"]
    assert [r["length"] for r in runs] == [300] * 3
    assert runs[0]["peak_bytes"] > 4 * runs[1]["peak_bytes"]
    assert runs[1]["peak_bytes"] == runs[2]["peak_bytes"]
    assert {r["chunk_size"] for r in runs} == {8}
    assert {r["prefill"] for r in runs} == {"chunked"}
    assert "LaCache balanced continues" in result.stdout
    rows = compare(runs)
    assert [row["name"] for row in record["table"]] == [row.name for row in rows]
    lines = [line.replace("*", "").split() for line in result.stdout.splitlines()]
    for row in rows:
        assert [*row.name.split(), *row.numbers] in lines
    assert record["conclusions"] == conclusions(runs)
    for sentence in record["conclusions"]:
        assert sentence in squeezed(result.stdout)


def test_json_is_the_record_without_its_long_lists(demo: Run, tmp_path: Path) -> None:
    result = demo("--json", None, "--tokens", 100)
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    record = read_record(tmp_path / "out" / "demo.json")
    for short, full in zip(printed["runs"], record["runs"], strict=True):
        assert set(full) - set(short) == {
            *("nll", "last_seen", "trace", "kept", "head_to_kept"),
        }
        assert all(full[key] == value for key, value in short.items())
    assert {key: printed[key] for key in ("conclusions", "table")} == {
        key: record[key] for key in ("conclusions", "table")
    }
    assert printed["continuation"]["text"]


@pytest.mark.slow
def test_the_same_command_gives_the_same_scores_and_text(demo: Run, tmp_path: Path) -> None:
    options = ("--json", None, "--tokens", 100)
    first = json.loads(demo(*options, "--out", tmp_path / "a").stdout)
    second = json.loads(demo(*options, "--out", tmp_path / "b").stdout)
    assert first["continuation"] == second["continuation"]
    a, b = (read_record(tmp_path / name / "demo.json")["runs"] for name in "ab")
    assert [r["nll"] for r in a] == [r["nll"] for r in b]


@pytest.mark.parametrize(("budget", "capacity"), [("64", 64), ("0.2", 20), ("0.01", SMALLEST)])
def test_both_bounded_caches_get_the_budget(
    demo: Run, tmp_path: Path, budget: str, capacity: int
) -> None:
    assert demo("--budget", budget, "--tokens", 100).exit_code == 0
    _, streaming, balanced = read_record(tmp_path / "out" / "demo.json")["runs"]
    assert streaming["capacity"] == balanced["capacity"] == capacity
    assert streaming["peak_bytes"] == balanced["peak_bytes"]


def test_a_budget_in_bytes_is_the_cap(demo: Run, tmp_path: Path) -> None:
    assert demo("--budget", "20KiB", "--tokens", 100).exit_code == 0
    _, *bounded = read_record(tmp_path / "out" / "demo.json")["runs"]
    for record in bounded:
        assert record["peak_bytes"] <= 20 * 1024
        per_token = record["peak_bytes"] / record["capacity"]
        assert record["peak_bytes"] > 20 * 1024 - per_token


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--tokens", 1, "tokens=1 must be at least 2"),
        ("--tokens", 100_000, "try a shorter length"),
        ("--budget", 0, "at least 1 token"),
        ("--budget", 5, "must be at least"),
        ("--chunk-size", 0, "chunk_size=0 must be at least 1"),
        ("--policy", "ladder:span=9", "must be below the number of layers"),
        ("--policy", "lader", "'lader' must be one of"),
        ("--threads", 0, "threads=0 must be at least 1"),
        ("--new-tokens", -1, "new_tokens=-1 must be at least 0"),
        ("--text", "no/such/file.txt", "is neither a file nor one of"),
        ("--model", "./no/such/model", "does not exist"),
        ("--dtype", "int3", "dtype=int3 must be one of"),
        ("--policy", "ladder:geometry=round", "must be one of interleaved, consecutive"),
    ],
)
def test_bad_options_end_in_one_line_before_any_prefill(
    demo: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    value: object,
    message: str,
) -> None:
    def must_not_run(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a run began")

    monkeypatch.setattr(EvalRunner, "run_perplexity", must_not_run)
    result = demo(option, value)
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_written_is_refused_at_once(demo: Run, text: Path) -> None:
    result = demo("--out", text / "below-a-file")
    assert result.exit_code == 2
    assert "error: cannot write" in result.stderr


def test_ctrl_c_leaves_nothing_half_written(
    demo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = EvalRunner.run_perplexity
    begun = []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        begun.append(1)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(EvalRunner, "run_perplexity", interrupted)
    result = demo()
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "stopped"
    assert not (tmp_path / "out").exists()


def test_any_policies_can_be_compared(run: Run, tiny: Path, text: Path, tmp_path: Path) -> None:
    result = run(
        *("demo", "--model", tiny, "--text", text, "--tokens", 100, "--budget", 48),
        *("--policy", "streaming", "--policy", "streaming:sinks=8", "--new-tokens", 0),
        *("--out", tmp_path / "out"),
    )
    assert result.exit_code == 0, result.output
    labels = [r["label"] for r in read_record(tmp_path / "out" / "demo.json")["runs"]]
    assert labels == ["streaming", "streaming:sinks=8"]
    assert "streaming:sinks=8 continues" in result.stdout


@pytest.mark.slow
def test_the_real_demo(run: Run, tmp_path: Path) -> None:
    result = run("demo", "--tokens", 1200, "--new-tokens", 10, "--out", tmp_path / "demo")
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir(tmp_path / "demo")) == FILES
    record = read_record(tmp_path / "demo" / "demo.json")
    full, streaming, balanced = record["runs"]
    assert full["model"]["name"] == "SmolLM2-135M-Instruct"
    # A model that reads English, not one that guesses among its 49,152 tokens.
    assert all(10 < r["perplexity"] < 100 for r in (full, streaming, balanced))
    assert balanced["peak_bytes"] <= streaming["peak_bytes"] < full["peak_bytes"] / 2
    assert full["nll"][:511] == pytest.approx(balanced["nll"][:511], abs=0.3)
    lines = [line.replace("*", "").split() for line in result.stdout.splitlines()]
    for row in compare(record["runs"]):
        assert [*row.name.split(), *row.numbers] in lines
