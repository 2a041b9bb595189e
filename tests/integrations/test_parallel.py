"""Tensor parallelism of transformers: every process caches its own KV heads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cache.tiny_models import tiny_model
from tests.integrations.parallel_generate import KV_DTYPES, generate

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("parallel_generate.py")


@pytest.mark.slow
def test_two_processes_generate_as_one(tmp_path: Path) -> None:
    folders = [str(tmp_path / family) for family in ("llama", "qwen3")]
    for folder in folders:
        tiny_model(Path(folder).name).save_pretrained(folder)
    together = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *together, SCRIPT, tmp_path / "result", *folders],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"result.{rank}").read_text()) for rank in "01")
    assert first == second
    alones = [generate(folder, kv_dtype) for folder in folders for kv_dtype in KV_DTYPES]
    for shared, alone in zip(first, alones, strict=True):
        assert shared["generated"] == alone["generated"]
        assert 2 * shared["bytes"] == alone["bytes"]
