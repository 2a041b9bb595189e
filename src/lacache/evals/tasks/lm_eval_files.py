"""Use the generators, prompts and metrics that lm-eval keeps, without its import-time effects."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from lacache.core.errors import InputError
from lacache.core.packages import package_folder, require_modules


def lm_eval_file(path: str, *needs: str) -> Path:
    """A file in lm-eval's folder of tasks, such as "ruler/vt_utils.py".

    Args:
        path: below lm-eval's `tasks`.
        needs: further modules that the file is of no use without.

    Raises:
        MissingExtraError: lm-eval or one of the modules is not installed.
        InputError: this lm-eval has no such file.
    """
    require_modules("lm_eval", *needs, why=f"lm-eval's {path}", extra="evals")
    file = package_folder("lm_eval", gives="tasks", install="pip install 'lacache[evals]'")
    file = file / "tasks" / path
    if not file.is_file():
        raise InputError(
            f"the installed lm-eval has no tasks/{path}; "
            "try the release that the extra names: pip install 'lacache[evals]'"
        )
    return file


def lm_eval_module(path: str, *needs: str) -> Any:
    """A private copy of one of lm-eval's modules, which lm-eval itself does not see.

    What is set in the copy (a file to read, a seed, a way to find sentences) patches nothing that
    others use.

    Raises:
        MissingExtraError: lm-eval or one of the modules that the file needs is not installed.
        InputError: this lm-eval has no such file.
    """
    file = lm_eval_file(path, *needs)
    loader = SourceFileLoader(f"lacache_copy_of_{file.stem}", str(file))
    module = ModuleType(loader.name)
    # Old packages among the imports warn of themselves, such as fuzzywuzzy of a missing speed-up.
    with _without_downloads(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader.exec_module(module)
    return module


@contextmanager
def _without_downloads() -> Iterator[None]:
    """Make lm-eval's modules believe that another process downloads what they like to have.

    They do so while they are imported, on local rank 0 alone, and wait for minutes where there
    is no network.
    """
    rank = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = "1"
    try:
        yield
    finally:
        if rank is None:
            del os.environ["LOCAL_RANK"]
        else:
            os.environ["LOCAL_RANK"] = rank
