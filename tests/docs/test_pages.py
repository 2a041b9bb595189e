"""Every code block of the README and the docs runs, or says why it does not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lacache.models import model_folder

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
OF_OTHER_TESTS = {
    "serving.md": "tests/server/test_docs.py, which has a server",
    "examples.md": "tests/docs/test_examples.py",
}
KINDS = {"console", "json", "python"}
FENCE = re.compile(r"^```(\S*)$.*?^```$", re.MULTILINE | re.DOTALL)


def kinds_of_blocks(page: Path) -> list[str]:
    kinds = [found[1] for found in FENCE.finditer(page.read_text())]
    return [kind for kind in kinds if kind != "text"]


WITH_BLOCKS = [page for page in PAGES if page.name not in OF_OTHER_TESTS and kinds_of_blocks(page)]
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def hub_with(folder: Path, home: Path) -> None:
    """Lay a model into a hub's cache, as if it had been downloaded."""
    repository = home / "hub" / f"models--{HUB_NAME.replace('/', '--')}"
    revision = "0" * 40
    (repository / "snapshots").mkdir(parents=True)
    (repository / "snapshots" / revision).symlink_to(folder)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_say_what_they_are(page: Path) -> None:
    assert set(kinds_of_blocks(page)) <= KINDS
    skipping = re.findall("<!-- skip.*", page.read_text())
    assert all(re.search(r'next "\w', line) for line in skipping)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_run(page: Path, tmp_path: Path) -> None:
    folder = model_folder(progress=False)
    assert folder is not None
    hub_with(folder, tmp_path / "home")
    here = tmp_path / "here"
    (here / "images").mkdir(parents=True)
    (here / "book.txt").write_text("The sea was calm, and the sky was blue. " * 150)
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "home"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "tests.docs.run_page", str(page)]
    done = subprocess.run(
        command,
        cwd=here,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    told = re.search(r"== (\d+) run, (\d+) skipped", done.stdout)
    assert told is not None
    assert int(told[1]) + int(told[2]) == len(kinds_of_blocks(page))
