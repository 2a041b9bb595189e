import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacache.common import records
from lacache.common.records import (
    environment,
    read_record,
    replacing,
    validate_writable,
    write_record,
)
from lacache.errors import InputError

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(max_examples=30)
@given(record=st.dictionaries(st.text(), VALUES))
def test_records_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, record: dict[str, object]
) -> None:
    path = tmp_path_factory.mktemp("records") / "new" / "record.json"
    write_record(path, record)
    assert read_record(path) == record
    assert [p.name for p in path.parent.iterdir()] == ["record.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "record.json"
    write_record(path, {"old": 1})

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of")
            raise error

    with pytest.raises(error):
        write_half()
    assert read_record(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["record.json"]


def test_a_number_that_is_none_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_record(tmp_path / "record.json", {"loss": float("nan")})
    assert os.listdir(tmp_path) == []


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(f"cannot read {tmp_path / 'none.json'}")):
        read_record(tmp_path / "none.json")
    (tmp_path / "torn.json").write_text('{"a": ')
    with pytest.raises(InputError, match="is not JSON"):
        read_record(tmp_path / "torn.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(InputError, match="holds a list"):
        read_record(tmp_path / "list.json")


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot write in .*/file/out: "):
        validate_writable(tmp_path / "file" / "out")
    validate_writable(tmp_path / "new" / "out")
    assert os.listdir(tmp_path) == ["file"]


def test_the_environment_is_complete_json() -> None:
    info = environment()
    assert {"lacache", "python", "torch", "transformers", "commit", "threads", "cores"} <= set(info)
    assert json.loads(json.dumps(info)) == info


def test_the_commit_is_that_of_the_checkout_that_holds_the_file(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    file = tmp_path / "file.py"
    file.write_text("")
    assert records._commit(file) is None
    git("init")
    assert records._commit(file) is None, "not tracked: another project's checkout"
    git("add", "file.py")
    git("commit", "-m", "first")
    head = git("rev-parse", "HEAD")
    assert records._commit(file) == head
    file.write_text("changed")
    assert records._commit(file) == f"{head}-dirty"
