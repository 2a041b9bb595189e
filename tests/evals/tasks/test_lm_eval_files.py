import sys
from pathlib import Path

import nltk
import pytest

from lacache.errors import InputError, MissingExtraError
from lacache.evals.tasks import lm_eval_files
from lacache.evals.tasks.lm_eval_files import lm_eval_file, lm_eval_module
from lacache.evals.tasks.ruler import niah, ruler


def test_copies_are_private() -> None:
    one, other = (lm_eval_module("ruler/common_utils.py") for _ in range(2))
    one.DEFAULT_SEQ_LENGTHS = []
    assert other.DEFAULT_SEQ_LENGTHS == [4096]
    assert one.__name__ not in sys.modules


def test_statements_can_be_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "one.py").write_text(
        "def fetch():\n    raise AssertionError\n\nfetch()\nhuge = big = 1 / 0\nsmall = 1\n"
    )
    monkeypatch.setattr(lm_eval_files, "package_folder", lambda *_, **__: tmp_path)
    module = lm_eval_module("one.py", without=frozenset({"fetch", "huge"}))
    assert module.small == 1
    assert callable(module.fetch)
    with pytest.raises(ZeroDivisionError):
        lm_eval_module("one.py", without=frozenset({"fetch"}))


def test_generators_download_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object) -> None:
        raise LookupError(args)

    def download(*args: object) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr(nltk.data, "find", missing)
    monkeypatch.setattr(nltk, "download", download)
    ruler.generator.cache_clear()
    assert len(niah.prepare_niah.__wrapped__().WORDS) > 1_000_000


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtraError, match=r"lm_eval.*lacache\[evals\]"):
        lm_eval_file("ruler/vt_utils.py")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(MissingExtraError, match=r"needs jieba.*lacache\[evals\]"):
        lm_eval_module("longbench/metrics.py", "fuzzywuzzy", "jieba")


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"no tasks/ruler/nothing\.py"):
        lm_eval_file("ruler/nothing.py")
