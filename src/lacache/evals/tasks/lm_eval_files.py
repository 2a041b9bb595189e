"""Load generators, prompts and metrics from lm-eval's files, without importing lm-eval."""

import ast
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

from lacache.common.packages import package_folder, require_modules
from lacache.errors import InputError


def lm_eval_file(path: str, *needs: str) -> Path:
    """Return the path of a file in lm-eval's folder of tasks, such as "ruler/vt_utils.py".

    Args:
        path: below lm-eval's `tasks`.
        needs: further modules that the file needs.

    Raises:
        MissingExtraError: lm-eval or one of the modules is not installed.
        InputError: this lm-eval has no such file.
    """
    require_modules("lm_eval", *needs, why=f"lm-eval's {path}", extra="evals")
    folder = package_folder("lm_eval", gives="tasks", install="pip install 'lacache[evals]'")
    file = folder / "tasks" / path
    if not file.is_file():
        raise InputError(
            f"the installed lm-eval has no tasks/{path}; "
            "try the release that the extra names: pip install 'lacache[evals]'"
        )
    return file


def lm_eval_module(path: str, *needs: str, without: frozenset[str] = frozenset()) -> Any:
    """Return a private copy of one of lm-eval's modules, whose attributes can be replaced freely.

    Args:
        path: below lm-eval's `tasks`.
        needs: further modules that it imports.
        without: names whose top-level assignments and calls are left out, because they would
            download something or fill the memory.

    Raises:
        MissingExtraError: lm-eval or one of the modules that the file needs is not installed.
        InputError: this lm-eval has no such file.
    """
    file = lm_eval_file(path, *needs)
    tree = ast.parse(file.read_bytes(), filename=str(file))
    tree.body = [node for node in tree.body if without.isdisjoint(_names(node))]
    module = ModuleType(f"lacache_copy_of_{file.stem}")
    # Old packages among the imports warn, such as fuzzywuzzy of a missing speed-up.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(tree, str(file), "exec"), module.__dict__)
    return module


def _names(node: ast.stmt) -> set[str]:
    """Return the names that a statement assigns, or the one that it calls."""
    match node:
        case ast.Assign(targets=targets):
            return {target.id for target in targets if isinstance(target, ast.Name)}
        case ast.Expr(value=ast.Call(func=ast.Name(id=name))):
            return {name}
    return set()
