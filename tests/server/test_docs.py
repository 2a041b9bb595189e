"""The examples of docs/serving.md run as they stand, but for the address and the model."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lacache.cli.app import app
from lacache.server.settings import StorageSettings
from tests.server.serving import NAME, listening, service

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
BLOCKS = [(found[1], found[2]) for found in re.finditer(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)]
COMMANDS = [line for kind, block in BLOCKS if kind == "console" for line in block.splitlines()]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with (
        service(storage=StorageSettings(folder=tmp_path / "state")) as one,
        listening(one) as address,
    ):
        yield address


def test_examples_run_in_order(address: str, tmp_path: Path) -> None:
    names: dict[str, object] = {}
    num_run = {"python": 0, "console": 0}
    for kind, block in BLOCKS:
        here = block.replace("http://127.0.0.1:8000", address)
        here = here.replace("SmolLM2-135M-Instruct", NAME)
        if kind == "python":
            exec(here, names)  # the page's own
            num_run[kind] += 1
            continue
        for line in here.splitlines():
            if line.startswith("curl "):
                command = [*shlex.split(line), "--fail-with-body"]
                done = subprocess.run(command, capture_output=True, cwd=tmp_path, check=False)
                assert done.returncode == 0, (line, done.stdout, done.stderr)
                num_run[kind] += 1
    assert num_run == {"python": 2, "console": 8}


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("lacache serve")])
def test_documented_options_exist(line: str) -> None:
    told = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).stdout
    options = [word for word in line.split(" -- ")[0].split() if word.startswith("--")]
    assert all(option in told for option in options)
