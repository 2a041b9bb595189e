"""Run the examples of the docs."""

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def output_of(name: str, *arguments: str) -> str:
    command = [sys.executable, EXAMPLES / name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout


def test_three_requests() -> None:
    output = output_of("vllm_offline.py")
    assert output.count("\n- ") + output.startswith("- ") == 3


def test_a_number_far_back() -> None:
    """The model is too small to find it."""
    assert " tokens: " in output_of("vllm_needle.py", "default")
