"""Every row of the tables names existing tests, and every test of this folder is listed there."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
TABLES = "".join(
    Path(__file__).with_name(name).read_text(encoding="utf-8")
    for name in ("README.md", "models.md")
)
NAME = re.compile(r"`([\w/]+\.py)::(\w+)`")


def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_row_names_existing_tests() -> None:
    rows = [line for line in TABLES.splitlines() if re.match(r"\| (?!input|event)", line)]
    assert len(rows) > 30
    for row in rows:
        named = NAME.findall(row.split(" | ")[-1])
        assert named, row
        for path, name in named:
            assert name in names_in(TESTS / path), f"{path}::{name}"


def test_every_test_of_this_folder_is_listed() -> None:
    named = set(NAME.findall(TABLES))
    here = {
        (f"robustness/{path.name}", name)
        for path in Path(__file__).parent.glob("test_*.py")
        if path != Path(__file__)
        for name in names_in(path)
    }
    about_the_tests = {
        ("robustness/test_values.py", "test_every_command_is_covered"),
        ("robustness/test_values.py", "test_names_of_types_are_those_of_torch"),
        ("robustness/test_ending.py", "test_the_package_runs_as_a_module"),
        ("robustness/test_files.py", "test_an_empty_name_is_not_the_default"),
    }
    assert here - about_the_tests <= named
