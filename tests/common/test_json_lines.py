import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacache.common.records import append_record, read_records
from lacache.errors import InputError
from tests.common.test_records import VALUES


@settings(max_examples=10)
@given(
    records=st.lists(st.dictionaries(st.text(), VALUES), max_size=4),
    cut=st.binary(max_size=9000).filter(lambda tail: not set(b"\n}") & set(tail)),
)
def test_records_come_back_as_they_were_whatever_was_cut_off(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, object]], cut: bytes
) -> None:
    path = tmp_path_factory.mktemp("records") / "new" / "runs.jsonl"
    for record in records:
        append_record(path, record)
        whole = path.read_bytes()
        path.write_bytes(whole + b"{" + cut)
    assert read_records(path) == records
    append_record(path, {"last": 1})
    assert read_records(path) == [*records, {"last": 1}]


def test_no_file_holds_no_records(tmp_path: Path) -> None:
    assert read_records(tmp_path / "runs.jsonl") == []


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("just one line")
    with pytest.raises(InputError, match="is not a file of records, so nothing was added"):
        append_record(path, {})
    assert path.read_text() == "just one line"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}\nnot json\n', "line 2 of .* is not JSON"),
        ('{"a": 1}\n[1]\n', "line 2 of .* holds a list"),
    ],
)
def test_damaged_lines_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_records(path)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_records(tmp_path)
    with pytest.raises(InputError, match="cannot write"):
        append_record(tmp_path, {})


def test_a_number_that_json_cannot_hold_adds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    append_record(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_record(path, {"a": float("nan")})
    assert read_records(path) == [{"a": 1}]


def test_a_file_that_was_cut_off_to_nothing_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_bytes(b'{"a"')
    append_record(path, {"b": 1})
    assert read_records(path) == [{"b": 1}]
    assert os.listdir(tmp_path) == ["runs.jsonl"]


def test_a_last_record_without_a_line_feed_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": 2}')
    assert read_records(path) == [{"a": 1}, {"b": 2}]
    append_record(path, {"c": 3})
    assert read_records(path) == [{"a": 1}, {"b": 2}, {"c": 3}]
