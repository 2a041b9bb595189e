"""The examples are short, are all on the page of examples, and run."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NOT_HERE = {"vllm_needle.py", "vllm_offline.py"}  # tests_vllm/test_example.py
# A random model finds no needles, so `lacache tune` refuses it.
WITH_THE_REAL_MODEL = {"generate.py", "tune.py"}
MOST_LINES = 39


def test_they_are_short_and_all_shown() -> None:
    assert EXAMPLES
    assert all(len(one.read_text().splitlines()) <= MOST_LINES for one in EXAMPLES)
    page = (ROOT / "docs" / "examples.md").read_text()
    assert set(re.findall(r'^--8<-- "examples/(\w+\.py)"$', page, re.MULTILINE)) == {
        one.name for one in EXAMPLES
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", [one.name for one in EXAMPLES if one.name not in NOT_HERE])
def test_it_runs(name: str, tmp_path: Path, run_forked: Callable[[Path, Path], str]) -> None:
    assert run_forked(ROOT / "examples" / name, tmp_path).strip()
