"""Every code block of the README and the docs runs, or says why it does not."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
OF_OTHER_TESTS = {
    "README.md": "the last test of this file",
    "serving.md": "tests/server/test_docs.py, which has a server",
    "examples.md": "tests/docs/test_examples.py",
}
KINDS = {"console", "json", "python"}
FENCE = re.compile(r"^```(\S*)$.*?^```$", re.MULTILINE | re.DOTALL)


def kinds_of_blocks(page: Path) -> list[str]:
    kinds = [found[1] for found in FENCE.finditer(page.read_text())]
    return [kind for kind in kinds if kind != "text"]


WITH_BLOCKS = [page for page in PAGES if page.name not in OF_OTHER_TESTS and kinds_of_blocks(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_say_what_they_are(page: Path) -> None:
    assert set(kinds_of_blocks(page)) <= KINDS
    skipping = re.findall("<!-- skip.*", page.read_text())
    assert all(re.search(r'next "\w', line) for line in skipping)


def check(output: str, page: Path) -> None:
    told = re.search(r"== (\d+) run, (\d+) skipped", output)
    assert told is not None
    assert int(told[1]) + int(told[2]) == len(kinds_of_blocks(page))


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "book.txt").write_text("The sea was calm, and the sky was blue. " * 150)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_run(page: Path, here: Path, run_forked: Callable[[Path, Path], str]) -> None:
    check(run_forked(page, here), page)


@pytest.mark.slow
def test_the_readme_runs_with_the_real_model_and_the_installed_command(here: Path) -> None:
    page = ROOT / "README.md"
    done = subprocess.run(
        [sys.executable, "-m", "tests.docs.run_page", str(page)],
        cwd=here,
        env=os.environ
        | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    check(done.stdout, page)
