"""A conversion that is stopped or killed leaves nothing that is used as a model."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lacache.models.files import find_damage
from tests.models.tiny import write_gguf

# Stops the process while weights are written.
STOPPED = """
import os, sys
from pathlib import Path
from transformers import PreTrainedModel
from lacache.models.packed import folder as packed
number = int(sys.argv.pop(1))
def half(self, folder, **options):
    (Path(folder) / "model.safetensors").write_bytes(b"half")
    os.kill(os.getpid(), number)

def half_of_packed(tensors, path, **options):
    path.write_bytes(b"half")
    os.kill(os.getpid(), number)

if number:
    PreTrainedModel.save_pretrained = half
    packed.save_file = half_of_packed
from lacache.cli import main
main()
"""


def convert(gguf: Path, home: Path, number: int, weights: str) -> subprocess.CompletedProcess[str]:
    line = ["generate", "the cat", "-n", "1", "--model", str(gguf), "--weights", weights]
    return subprocess.run(
        [sys.executable, "-c", STOPPED, str(number), *line],
        env=os.environ | {"LACACHE_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["model", "file"])
def test_sigterm_and_sigkill_during_a_conversion(tmp_path: Path, weights: str) -> None:
    gguf, home = tmp_path / "tiny.gguf", tmp_path / "home"
    write_gguf(gguf)
    models = home / "models"

    done = convert(gguf, home, signal.SIGTERM, weights)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr.splitlines()[-1] == "stopped"
    assert {path.suffix for path in models.iterdir()} <= {".lock"}

    done = convert(gguf, home, signal.SIGKILL, weights)
    assert done.returncode == -signal.SIGKILL
    (left,) = (path for path in models.iterdir() if path.suffix != ".lock")
    assert left.suffix == ".partial"

    done = convert(gguf, home, 0, weights)
    assert done.returncode == 0, done.stderr
    (made,) = (path for path in models.iterdir() if path.suffix != ".lock")
    assert made.name.startswith("tiny-")
    assert find_damage(made) is None
