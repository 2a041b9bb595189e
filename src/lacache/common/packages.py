"""Find the folder of an installed package that is used for its data files alone."""

import importlib.util
from pathlib import Path

from lacache.errors import MissingExtraError


def package_folder(package: str, *, gives: str, install: str) -> Path:
    """Folder of a top-level package, found without importing it.

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


def require_modules(*modules: str, why: str, extra: str) -> None:
    """Refuse to go on without optional modules.

    Raises:
        MissingExtraError: One is not installed; names the extra that brings it.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            f"{why} needs {' and '.join(missing)}, not installed; "
            f"try: pip install 'lacache[{extra}]'"
        )
