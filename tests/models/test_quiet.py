"""Libraries underneath print nothing when a snippet imports, converts, loads or quantizes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

LOADING = """
import logging
logging.getLogger("torchao").setLevel(logging.INFO)
from lacache import LaCache
from lacache.models import load_model
load_model(GGUF)
assert logging.getLogger("torchao").level == logging.INFO, "the level was not restored"
assert logging.getLogger("torch.utils._pytree").level == logging.NOTSET
"""
ENGINE = """
from lacache.engine.engine import Engine
from lacache.models import load_model
loaded = load_model(MODEL, progress=False)
engine = Engine(loaded.model, budget=24, policy="ladder", weights="int8")
assert len(list(engine.submit([3, 4, 5], max_new_tokens=3))) == 3
"""
OURS = re.compile(
    r"Converting once: |Converted into |Loading |\s*$|\S+$"
    r"|\S? *(Reading|Unpacking|Writing|Checking) "
)


def run(snippet: str, home: Path) -> list[str]:
    """Run it with Python's default warning filters; return the lines on stderr."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
    done = subprocess.run(
        [sys.executable, "-c", snippet],
        env=environment | {"LACACHE_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return done.stderr.splitlines()


def test_loading_prints_only_our_lines(tiny_gguf: Path, tmp_path: Path) -> None:
    lines = run(LOADING.replace("GGUF", repr(str(tiny_gguf))), tmp_path)
    assert "Converting once: " in lines[0]
    assert [line for line in lines if not OURS.match(line)] == []


@pytest.mark.slow
def test_an_engine_with_int8_weights_prints_nothing(tiny_directory: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    assert run(ENGINE.replace("MODEL", repr(str(tiny_directory))), tmp_path) == []
