"""Processes whose streams, folder and signals are odd: each ends in one line."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

INSPECT = ["inspect", "--layers", "8", "--seen", "100", "--budget", "32"]
LACACHE = [sys.executable, "-m", "lacache"]
FULL = Path("/dev/full")


def lacache(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    given = {"capture_output": True, "text": True, "check": False} | options
    return subprocess.run([*LACACHE, *map(str, arguments)], **given)


def in_shell(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of shell in which $LACACHE is the command."""
    # With it, Python treats a write of which the disk took half as complete.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    return subprocess.run(
        ["sh", "-c", line],
        cwd=cwd,
        env=environment | {"LACACHE": " ".join(LACACHE)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_package_runs_as_a_module() -> None:
    done = lacache("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("lacache ")


@pytest.mark.parametrize(
    ("line", "code", "stderr"),
    [
        ("$LACACHE generate -m . <&-", 2, "error: model directory . has no config.json; "),
        ("$LACACHE inspect --layers 8 --seen 9 -b 32 >&-", 0, ""),
        ("$LACACHE inspect --layers 8 --seen 9 -b 32 2>&-", 0, ""),
        ("$LACACHE inspect --layers 8 --seen -1 -b 32 <&- >&- 2>&-", 2, ""),
        ("$LACACHE inspect --layers 8 --seen 99999 -b 50000 --json | true", 0, ""),
        ("mkdir gone && cd gone && rmdir ../gone && $LACACHE --version", 2, "error: the working"),
    ],
)
def test_closed_streams_and_a_deleted_folder(
    tmp_path: Path, line: str, code: int, stderr: str
) -> None:
    done = in_shell(line, tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(stderr)
    assert done.stderr.count("\n") == (1 if stderr else 0)


@pytest.mark.skipif(not FULL.exists(), reason="a device of Linux")
@pytest.mark.parametrize("arguments", [INSPECT, [*INSPECT, "--json"], ["--help"]])
def test_a_full_disk_under_the_output(arguments: list[str]) -> None:
    with FULL.open("w") as full:
        done = lacache(*arguments, stdout=full, stderr=subprocess.PIPE, capture_output=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the output cannot be written (No space left on device);")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"TERM": "dumb", "COLUMNS": "20", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        {"COLUMNS": "1"},
        {"COLUMNS": "many", "LINES": "-1"},
    ],
)
def test_odd_terminals(settings: dict[str, str]) -> None:
    done = lacache(*INSPECT, env=os.environ | settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert "100tokensseen" in "".join(done.stdout.split())


# Stops the process when a module is loaded, as a hand on the keyboard could.
AT_IMPORT = """
import os, signal, sys
from importlib.abc import MetaPathFinder
_, number, name, as_other, *arguments = sys.argv
sys.argv = ["lacache", *arguments]

class Stopping(MetaPathFinder):
    def find_spec(self, wanted, path, target=None):
        if wanted == name:
            try:
                os.kill(os.getpid(), int(number))
            except KeyboardInterrupt:
                if as_other:  # as some libraries make of it
                    raise ImportError("something went wrong")
                raise

sys.meta_path.insert(0, Stopping())
from lacache.cli import main
main()
"""


@pytest.mark.parametrize(
    ("number", "module"),
    [
        (signal.SIGINT, "logging"),
        (signal.SIGINT, "typer"),
        (signal.SIGTERM, "lacache.cli.inspect"),
        (signal.SIGINT, "rich.table"),
    ],
)
def test_stopped_while_modules_load(number: signal.Signals, module: str) -> None:
    command = [sys.executable, "-c", AT_IMPORT, str(int(number)), module, "", *INSPECT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (128 + number, "stopped\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "as_other"),
    [("torch", ""), ("torch", "yes"), ("transformers", ""), ("lacache.engine.engine", "")],
)
def test_stopped_while_libraries_load(tmp_path: Path, module: str, as_other: str) -> None:
    from tests.engine.tiny import save_tiny

    line = ["generate", "hi", "-n", "1", "-m", str(save_tiny(tmp_path / "tiny"))]
    command = [sys.executable, "-c", AT_IMPORT, str(int(signal.SIGINT)), module, as_other, *line]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "stopped\n")


def test_ctrl_c_is_ignored_in_the_background() -> None:
    """As a shell asks of its jobs."""
    command = [sys.executable, "-c", AT_IMPORT, str(int(signal.SIGINT)), "typer", "", *INSPECT]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_lm_eval_is_stopped_in_one_line() -> None:
    code = AT_IMPORT.replace("lacache.cli ", "lacache.integrations.lm_eval ")
    command = [sys.executable, "-c", code, str(int(signal.SIGINT)), "lm_eval", "", "run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "stopped\n")
