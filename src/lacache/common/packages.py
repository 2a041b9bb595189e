"""Optional packages: those that carry data files, and those that an extra installs."""

import importlib.util
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from lacache.errors import MissingExtraError


def package_folder(package: str, *, gives: str, install: str) -> Path:
    """Return the folder of a top-level package, found without importing it.

    Args:
        package: Name that the package is imported by.
        gives: What the package holds, for the error.
        install: The command that installs it, for the error.

    Raises:
        MissingExtraError: The package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            f"package {package!r}, which holds {gives}, is not installed; try: {install}"
        )
    return Path(spec.submodule_search_locations[0])


@cache
def notice_once(notice: str) -> None:
    """Print a notice on stderr, such as an author and licence, once in each process."""
    print(notice, file=sys.stderr, flush=True)


def require_modules(*modules: str, why: str, extra: str) -> None:
    """Raise unless all optional modules are installed.

    Raises:
        MissingExtraError: One is not installed; the error names the extra that installs it.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            f"{why} needs {' and '.join(missing)}, not installed; "
            f"try: pip install 'lacache[{extra}]'"
        )


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Hide the warnings that torchao logs when it is first imported; errors are still shown.

    transformers imports torchao where it is installed. torchao then warns that it cannot load
    kernels for other machines, and torch warns about how torchao registers its enums.
    """
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
