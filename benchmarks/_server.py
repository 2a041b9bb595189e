"""Starting `lacache serve` in a process of its own."""

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import IO

SERVE = [sys.executable, "-c", "from lacache.cli import main; main()", "serve"]


def start(options: Sequence[str], printed: IO[str]) -> tuple[subprocess.Popen[str], str]:
    """Start the server, which prints to that file; return its process and its address."""
    process = subprocess.Popen([*SERVE, "--port", "0", *options], stderr=printed, text=True)
    while process.poll() is None:
        printed.seek(0)
        found = re.search(r"listening at (\S+)/v1", printed.read())
        if found:
            return process, found[1]
        time.sleep(0.2)
    printed.seek(0)
    raise SystemExit(printed.read())
