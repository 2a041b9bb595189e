"""Run the code blocks of one page in order, in the folder where this is started.

A block that cannot run where tests run has a comment before it that says why:
`<!-- skip: next "takes half an hour" -->`.
"""

import json
import subprocess
import sys
from pathlib import Path
from unittest import SkipTest

from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser


def run_console(example: Example) -> None:
    subprocess.run(["bash", "-euo", "pipefail", "-c", str(example.parsed)], check=True)


def read_json(example: Example) -> None:
    json.loads(example.parsed)


PARSERS = (
    PythonCodeBlockParser(),
    CodeBlockParser(language="console", evaluator=run_console),
    CodeBlockParser(language="json", evaluator=read_json),
    SkipParser(),
)


def run_page(path: Path) -> None:
    num_run, num_skipped = 0, 0
    for example in Sybil(PARSERS).parse(path).examples():
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


if __name__ == "__main__":
    run_page(Path(sys.argv[1]))
