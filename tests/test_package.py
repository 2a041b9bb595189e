import subprocess
import sys
from importlib.metadata import version

import pytest
import torch

import lacache

HEAVY = {"gguf", "matplotlib", "numpy", "rich", "torch", "transformers", "typer"}


def modules_loaded_by(statement: str) -> set[str]:
    """The top-level names in `sys.modules` after a new interpreter ran `statement`."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


@pytest.mark.parametrize("module", ["lacache", "lacache.policies"])
def test_import_is_light(module: str) -> None:
    loaded = modules_loaded_by(f"import {module}")
    assert "lacache" in loaded
    assert not loaded & HEAVY


def test_heavy_import_would_be_seen() -> None:
    assert "rich" in modules_loaded_by("import rich")


def test_version_is_the_installed_one() -> None:
    assert lacache.__version__ == version("lacache")


def test_unknown_attribute_is_refused() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = lacache.no_such_name  # type: ignore[attr-defined]


def test_tests_run_on_one_torch_thread() -> None:
    assert torch.get_num_threads() == 1


def test_tests_cannot_reach_a_hub() -> None:
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE
