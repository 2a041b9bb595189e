from pathlib import Path

import pytest

from lacache.calibration.store import Journal
from lacache.errors import InputError


def fail() -> list[float]:
    raise AssertionError("measured again")


def test_what_is_known_is_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "journal.jsonl"
    assert Journal(path, {"seed": 0}).get("a", lambda: [1.0, 2.5]) == [1.0, 2.5]
    later = Journal(path, {"seed": 0})
    assert "a" in later
    assert later.get("a", fail) == [1.0, 2.5]


def test_a_line_that_was_cut_off_is_measured_again_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, {})
    for key in ("a", "b"):
        journal.get(key, lambda: [1.0])
    path.write_text(path.read_text()[:-4])
    later = Journal(path, {})
    assert "a" in later
    assert later.get("b", lambda: [2.0]) == [2.0]
    assert Journal(path, {}).get("b", fail) == [2.0]


def test_other_settings_start_anew(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path, {"seed": 0}).get("a", lambda: [1.0])
    assert Journal(path, {"seed": 1}).get("a", lambda: [2.0]) == [2.0]
    assert "a" not in Journal(path, {"seed": 0})


def test_a_file_begins_with_the_first_measurement(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, {"seed": 0})
    assert not path.exists()
    journal.get("a", lambda: [1.0])
    assert path.exists()


def test_a_damaged_line_is_reported_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path, {}).get("a", lambda: [1.0])
    before = path.read_text()
    path.write_text(before.replace("}", "", 1) + before)
    damaged = path.read_text()
    with pytest.raises(InputError, match=r"line 1 of .* is not JSON [^;]*; delete .* to measure"):
        Journal(path, {})
    assert path.read_text() == damaged


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot"):
        Journal(tmp_path / "file" / "journal.jsonl", {})
