import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.evals.report.made_up import eval_record, study, write_lines


def test_report_writes_a_page(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    records = study(draws=0, lengths=[1000], budgets=["0.5"])
    half = len(records) // 2
    paths = [
        write_lines(tmp_path / name, part)
        for name, part in (("a.jsonl", records[:half]), ("b.jsonl", records[half:]))
    ]
    result = run("report", *paths, "--out", tmp_path / "page")
    assert result.exit_code == 0, result.output
    plots = len(list((tmp_path / "page").glob("*.png")))
    assert f"wrote {tmp_path / 'page' / 'report.md'} and {plots} plots" in result.stdout
    assert (tmp_path / "page" / "report.md").read_text().startswith("# Quality")


def test_json_prints_the_numbers_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [eval_record("ladder"), eval_record("streaming")])
    result = run("report", path, "--json", "--out", tmp_path / "page")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["sections"][0]["tables"][0]["rows"]
    assert {row["policy"] for row in rows} == {"Ladder", "StreamingLLM"}
    assert not (tmp_path / "page").exists()


def test_an_invalid_line_is_named_and_nothing_is_written(run: Run, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [eval_record(), {"kind": "demo"}])
    result = run("report", path, "--out", tmp_path / "page")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {path}:2: a record of kind 'demo'")
    assert not (tmp_path / "page").exists()
