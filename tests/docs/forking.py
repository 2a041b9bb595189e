"""Run pages and programs in forks of one process, which load the libraries once for all.

Each line of stdin is a JSON object: the `path` of a page or program, the `folder` to run in and
the `environment`. What it prints goes to the file `output` in the folder, and the exit status to
stdout.
"""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sybil import Example
from transformers import LlamaForCausalLM

from lacache.cli import main
from lacache.evals.tuning import search
from tests.docs.run_page import compute_quickly, run_page

# transformers imports a model's code when it is first asked for.
assert LlamaForCausalLM


def forked(function: Callable[[], object]) -> int:
    """Call it in a fork; return the exit status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        function()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if status:
            traceback.print_exc()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run_lacache(*arguments: str) -> None:
    """The command line."""

    def run() -> None:
        sys.argv = ["lacache", *arguments]
        main()

    if status := forked(run):
        raise subprocess.CalledProcessError(status, arguments)


def run_console(example: Example) -> None:
    """Lines that are one plain call of `lacache` in forks, what is between them in a shell."""
    lines = str(example.parsed).replace("\\\n", " ")
    for number, text in enumerate(re.split(r"(?m)^lacache ([^|<>&;$\n]*)$", lines)):
        if number % 2:
            run_lacache(*shlex.split(text, comments=True))
        elif text.strip():
            subprocess.run(["bash", "-euo", "pipefail", "-c", text], check=True)


def run_program(path: Path) -> None:
    real_run = subprocess.run

    def run(command: list[str], **options: Any) -> Any:
        if command[:3] == [sys.executable, "-m", "lacache"]:
            return run_lacache(*command[3:])
        return real_run(command, **options)

    subprocess.run = run  # type: ignore[assignment]
    # A random model knows no answer; take it as one that does.
    search.GUESS = 1e9
    sys.argv = [str(path)]
    runpy.run_path(str(path), run_name="__main__")


def answer(path: str, folder: str, environment: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    output = os.open("output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if path.endswith(".md"):
        run_page(Path(path), run_console)
    else:
        run_program(Path(path))


if __name__ == "__main__":
    compute_quickly()
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        print(forked(lambda asked=asked: answer(**asked)), flush=True)
