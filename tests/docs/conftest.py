import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.docs.stand_in import lay_stand_in

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def run_forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path, Path], str]]:
    """Run a page or program in a folder, with a stand-in for the default model."""
    home = tmp_path_factory.mktemp("home")
    lay_stand_in(home)
    environment = {
        "LACACHE_HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.docs.forking"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def run(path: Path, folder: Path) -> str:
        asked = {"path": str(path), "folder": str(folder), "environment": environment}
        stdin.write(json.dumps(asked) + "\n")
        stdin.flush()
        status = stdout.readline()
        output = (folder / "output").read_text()
        assert status == "0\n", output[-5000:]
        return output

    yield run
    process.communicate()
