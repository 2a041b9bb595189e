"""Tensor parallelism of transformers: every process caches its own KV heads."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cache.tiny_models import tiny_model

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("parallel_generate.py")


def run(*command: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_two_processes_generate_as_one(family: str, tmp_path: Path) -> None:
    folder, result = str(tmp_path / "model"), str(tmp_path / "result")
    tiny_model(family).save_pretrained(folder)
    run(str(SCRIPT), folder, result)
    together = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run(*together, str(SCRIPT), folder, result)

    def of(process: str) -> Any:
        return json.loads(Path(f"{result}.{process}").read_text())

    alone, first, second = of("alone"), of("0"), of("1")
    assert first == second
    assert first["generated"] == alone["generated"]
    assert 2 * first["bytes"] == alone["bytes"]
