"""Every row of docs/robustness.md names tests that there are, and every test here is named."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "robustness.md"
NAME = re.compile(r"`([\w/]+\.py)::(\w+)`")


def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_row_names_tests_that_there_are() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if re.match(r"\| (?!tried)", line)]
    assert len(rows) > 30
    for row in rows:
        named = NAME.findall(row.split(" | ")[-1])
        assert named, row
        for path, name in named:
            assert name in names_in(TESTS / path), f"{path}::{name}"


def test_every_test_of_this_folder_is_in_the_table() -> None:
    named = set(NAME.findall(PAGE.read_text(encoding="utf-8")))
    here = {
        (f"robustness/{path.name}", name)
        for path in Path(__file__).parent.glob("test_*.py")
        if path != Path(__file__)
        for name in names_in(path)
    }
    about_the_tests = {
        ("robustness/test_values.py", "test_every_command_is_tried"),
        ("robustness/test_values.py", "test_names_of_types_are_those_that_torch_has"),
        ("robustness/test_ending.py", "test_it_is_a_module_too"),
        ("robustness/test_files.py", "test_no_name_is_not_the_default"),
    }
    assert here - about_the_tests <= named
