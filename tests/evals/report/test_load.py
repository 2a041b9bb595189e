import json
from pathlib import Path
from typing import Any

import pytest

from lacache.errors import InputError
from lacache.evals.report import read_runs
from tests.evals.report.made_up import eval_record, ppl_record, write_lines


def test_every_run_comes_with_its_place(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [eval_record(), ppl_record(nll=[1.0] * 9)])
    path.write_text(path.read_text().replace("\n", "\n\n", 1))
    runs = read_runs([path, path])
    assert [run.source for run in runs] == [f"{path}:1", f"{path}:3"] * 2
    assert [run.is_ppl for run in runs] == [False, True] * 2
    assert runs[0].record == eval_record()


def test_separators_of_unicode_do_not_end_a_line(tmp_path: Path) -> None:
    record = eval_record()
    record["samples"][0]["predictions"] = ["a\u2028b\x85c"]
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_runs([path])[0].record == record


BROKEN: list[tuple[str, Any, str]] = [
    ("no kind", {"a": 1}, "kind None is not one of eval, ppl"),
    ("foreign kind", {"kind": "demo"}, "kind 'demo' is not one of"),
    ("a list", [1], "a list is not a record"),
    ("no score", {"score": ...}, "the record has no score"),
    ("text as score", {"score": "high"}, "score=high is of the wrong type str"),
    ("true as count", {"count": True}, "count=True is of the wrong type bool"),
    ("budget", {"budget": "some"}, "budget='some' must be a number of tokens, a share or"),
    ("policy without name", {"policy": {}}, "policy: the record has no name"),
    ("interval", {"score_interval": [0.1]}, "score_interval must be two numbers"),
    ("interval of texts", {"nll_interval": ["a", "b"]}, "nll_interval must be two numbers"),
    ("kv_dtype", {"kv_dtype": 8}, "kv_dtype must be a text or null"),
    ("kv_bits", {"kv_bits": "eight"}, "kv_bits must be a number"),
    ("no samples", {"samples": []}, "samples are empty"),
    ("sample", {"samples": [3]}, "a sample is a int"),
    ("sample without loss", {"samples": [{"score": 1}]}, "a sample: the record has no nll"),
]


@pytest.mark.parametrize(
    ("changes", "message"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN]
)
def test_a_broken_record_is_named_by_its_line(tmp_path: Path, changes: Any, message: str) -> None:
    if isinstance(changes, dict) and not changes.keys() & {"a", "kind"}:
        changed = eval_record() | changes
        broken: Any = {key: value for key, value in changed.items() if value is not ...}
    else:
        broken = changes
    path = write_lines(tmp_path / "a.jsonl", [eval_record(), broken])
    with pytest.raises(InputError) as caught:
        read_runs([path])
    assert str(caught.value).startswith(f"{path}:2: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nll": []}, "nll must be numbers, at least one"),
        ({"nll": [1.0, "x"]}, "nll must be numbers"),
        ({"by_position": [[0, 1]]}, "by_position must be triples"),
        ({"last_seen": [3]}, "last_seen must be a number for each of nll"),
    ],
)
def test_broken_perplexity(tmp_path: Path, changes: Any, message: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", [ppl_record(nll=[1.0] * 9) | changes])
    with pytest.raises(InputError, match=message):
        read_runs([path])


@pytest.mark.parametrize("line", ['{"kind": "ev', '{"score": NaN}', "not json"])
def test_what_is_not_json_is_named_by_its_line(tmp_path: Path, line: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", [eval_record()])
    path.write_text(path.read_text() + line)
    with pytest.raises(InputError, match=r"a\.jsonl:2: not a line of JSON .*run `lacache eval`"):
        read_runs([path])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_runs([tmp_path / "none.jsonl"])
    with pytest.raises(InputError, match="cannot read"):
        read_runs([tmp_path])
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="holds no records"):
        read_runs([tmp_path / "empty.jsonl"])
    (tmp_path / "model.safetensors").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not text"):
        read_runs([tmp_path / "model.safetensors"])
