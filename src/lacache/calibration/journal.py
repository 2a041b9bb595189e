"""What has been measured so far, so that a calibration goes on where it was interrupted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import final

from lacache.common.files import parse_json
from lacache.common.records import Record, replacing
from lacache.errors import InputError


@final
class Journal:
    """A file of measurements by key, one JSON line each, appended as they are made.

    A line that was cut off is measured again. Lines of other settings are left out, and the file
    starts anew.

    Args:
        path: the file; made if missing, together with its folder.
        settings: all that the measurements depend on.

    Raises:
        InputError: the file cannot be read or written.
    """

    def __init__(self, path: Path, settings: Record) -> None:
        self._path = path
        self._known: dict[str, list[float]] = {}
        first = json.dumps(settings, sort_keys=True)
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
            if lines and lines[0] == first:
                self._known = dict(filter(None, map(_parse, lines[1:])))
            kept = [first, *(json.dumps(entry) for entry in self._known.items())]
            with replacing(path) as temporary:
                temporary.write_text("\n".join(kept) + "\n", encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot keep {path}: {error}; try another folder") from error

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def get(self, key: str, measure: Callable[[], list[float]]) -> list[float]:
        """What is known under this key, measured if it is not.

        Raises:
            InputError: it cannot be written down.
        """
        if key not in self._known:
            numbers = measure()
            try:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([key, numbers], allow_nan=False) + "\n")
            except OSError as error:
                raise InputError(f"cannot write {self._path}: {error}; make space") from error
            self._known[key] = numbers
        return self._known[key]


def _parse(line: str) -> tuple[str, list[float]] | None:
    try:
        key, numbers = parse_json(line)
    except (ValueError, TypeError):
        return None
    if not isinstance(key, str) or not isinstance(numbers, list):
        return None
    return key, numbers
