"""Run the code blocks of one page in order, in the folder where this is started.

A block that cannot run where tests run has a comment before it that says why:
`<!-- skip: next "takes half an hour" -->`.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import SkipTest

import torch
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

from lacache import models
from lacache.models.arithmetic import has_arithmetic


def run_console(example: Example) -> None:
    subprocess.run(["bash", "-euo", "pipefail", "-c", str(example.parsed)], check=True)


def read_json(example: Example) -> None:
    json.loads(example.parsed)


def run_page(path: Path, run_console: Callable[[Example], None] = run_console) -> None:
    parsers = (
        PythonCodeBlockParser(),
        CodeBlockParser(language="console", evaluator=run_console),
        CodeBlockParser(language="json", evaluator=read_json),
        SkipParser(),
    )
    num_run, num_skipped = 0, 0
    for example in Sybil(parsers).parse(path).examples():
        where = f"{path.name}:{example.line}"
        print("==", where, flush=True)
        try:
            example.evaluate()
        except SkipTest as reason:
            print("skipped:", reason)
            num_skipped += 1
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"{where} ended with {error.returncode}") from error
        else:
            # A comment that skips the next block is an example too.
            num_run += not isinstance(example.parsed, tuple)
    print(f"== {num_run} run, {num_skipped} skipped")


def compute_quickly() -> None:
    """Load models in float32 unless a page says otherwise, as the commands do.

    A processor without 16-bit arithmetic takes ten times as long for the 16 bits of the weights.
    """
    if not has_arithmetic(torch.bfloat16):
        models.load_model = partial(models.load_model, dtype="float32")


if __name__ == "__main__":
    compute_quickly()
    run_page(Path(sys.argv[1]))
