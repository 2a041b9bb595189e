"""What several benchmarks share: cases in fresh processes, where results go, tries."""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lacache.common.records import Record

RESULTS = Path(__file__).parent / "results"


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--quick",
        action="store_true",
        help="try whether it runs, with small numbers; what it writes goes to a temporary folder",
    )
    options.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    return options


def results(*, quick: bool) -> Path:
    """The folder that records go to: a try must not replace one."""
    return Path(tempfile.gettempdir()) / "lacache-quick" if quick else RESULTS


def run_fresh(script: str, arguments: Sequence[str], *, timeout: float | None = None) -> Record:
    """Run a script in a process of its own and return the record that it prints last.

    Nothing of an earlier case is in its memory, and whatever ends it ends nothing else.

    Returns:
        The record; or one with "error" alone, which says in a line why there is none.
    """
    try:
        done = subprocess.run(
            [sys.executable, script, *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {timeout:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        record: Record = json.loads(lines[-1])
        return record
    if done.returncode < 0:
        return {"error": f"was ended by signal {-done.returncode}"}
    # The last line of a traceback that names an error; others follow it at times.
    said = done.stderr.strip().splitlines() or ["said nothing"]
    named = [line for line in said if re.match(r"[\w.]*(Error|Exception|Exit)\b", line)]
    return {"error": (named or said)[-1][:300]}
