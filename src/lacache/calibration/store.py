"""The user's folder of head profiles, and the journal of an unfinished calibration."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import final

from lacache.common.files import parse_json, profiles_folder
from lacache.common.records import Record, replacing, write_record
from lacache.errors import InputError
from lacache.policies.head_profile import HeadProfile, profile_json


def profile_path(fingerprint: str) -> Path:
    """Return the file of a model's profile in the user's folder."""
    return profiles_folder() / f"{fingerprint}.json"


def save_profile(profile: HeadProfile, path: Path) -> None:
    """Write a profile as JSON, atomically.

    Raises:
        InputError: the file cannot be written.
    """
    write_record(path, profile_json(profile))


def journal_path(fingerprint: str) -> Path:
    """Return the journal of an interrupted calibration of a model, in the user's folder."""
    return profiles_folder() / f"{fingerprint}.partial.jsonl"


@final
class Journal:
    """A file of measurements by key, one JSON line each, appended as they are made.

    A truncated line is measured again. A file of other settings is started anew.

    Args:
        path: the file; created if missing, together with its folder.
        settings: everything that the measurements depend on.

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
        """Return the measurement of a key; measure and append it if it is missing.

        Raises:
            InputError: the file cannot be written.
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
