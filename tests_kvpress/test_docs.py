"""Run the Python of docs/kvpress.md, in the environment of kvpress."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

from lacache.integrations.kvpress import LadderPress
from tests.engine.tiny import save_tiny

PAGE = Path(__file__).parents[1] / "docs" / "kvpress.md"


def test_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(tmp_path / "M")
    monkeypatch.chdir(tmp_path)
    # Stand-ins for the modules of kvpress's evaluation that the page imports.
    evaluate, registry = ModuleType("evaluate"), ModuleType("evaluate_registry")
    evaluate.CliEntryPoint = object  # type: ignore[attr-defined]
    registry.PRESS_REGISTRY = presses = {}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "evaluate", evaluate)
    monkeypatch.setitem(sys.modules, "evaluate_registry", registry)
    page: Any = Sybil([PythonCodeBlockParser()]).parse(PAGE)
    examples = list(page.examples())
    assert len(examples) == 2
    for example in examples:
        example.namespace["__name__"] = "page"
        example.evaluate()
    assert examples[0].namespace["answer"]
    assert presses == {
        "lacache": LadderPress(),
        "lacache_slots": LadderPress(positions="slots"),
        "lacache_not_rerotated": LadderPress(rerotate=False),
    }
