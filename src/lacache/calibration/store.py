"""The user's folder of head profiles, journals of unfinished calibrations, and refused models."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, final

from lacache.common.files import profiles_folder
from lacache.common.records import (
    Record,
    append_record,
    read_record,
    read_records,
    replacing,
    write_record,
)
from lacache.errors import InputError
from lacache.policies.head_profile import HeadProfile, profile_json
from lacache.version import __version__


def profile_path(fingerprint: str) -> Path:
    """Return the file of a model's profile in the user's folder."""
    return profiles_folder() / f"{fingerprint}.json"


def save_profile(profile: HeadProfile, path: Path) -> None:
    """Write a profile as JSON, atomically.

    Raises:
        InputError: the file cannot be written.
    """
    write_record(path, profile_json(profile))


def lock_path(fingerprint: str) -> Path:
    """Return the file that one calibration of a model locks, in the user's folder."""
    return profiles_folder() / f".{fingerprint}.lock"


def write_refusal(fingerprint: str, reason: str) -> None:
    """Remember that a model cannot be calibrated, until another version of this package.

    Raises:
        InputError: the file cannot be written.
    """
    write_record(_refusal_path(fingerprint), {"reason": reason, "lacache": __version__})


def read_refusal(fingerprint: str) -> str | None:
    """Return why a model cannot be calibrated, or None if that was never tried."""
    with suppress(InputError):
        refusal = read_record(_refusal_path(fingerprint))
        if refusal.get("lacache") == __version__:
            return str(refusal.get("reason"))
    return None


def delete_refusal(fingerprint: str) -> None:
    """Forget that a model cannot be calibrated. A file that cannot be deleted stays."""
    with suppress(OSError):
        _refusal_path(fingerprint).unlink(missing_ok=True)


def _refusal_path(fingerprint: str) -> Path:
    return profiles_folder() / f"{fingerprint}.refused"


def journal_path(fingerprint: str, settings: str) -> Path:
    """Return the journal of an interrupted calibration of a model, in the user's folder.

    Args:
        fingerprint: the model's.
        settings: of the calibration, as text; other settings have another journal.
    """
    digest = sha256(settings.encode()).hexdigest()[:8]
    return profiles_folder() / f"{fingerprint}.{digest}.partial.jsonl"


def delete_journals(fingerprint: str) -> None:
    """Delete all journals of a model. Files that cannot be deleted stay."""
    with suppress(OSError):
        for path in profiles_folder().glob(f"{fingerprint}.*partial.jsonl"):
            path.unlink(missing_ok=True)


@final
class Journal:
    """A file of measurements by key, one JSON line each, appended as they are made.

    What was cut off at its end is measured again. A file of other settings is started anew.

    Args:
        path: the file; created with the first measurement, together with its folder.
        settings: everything that the measurements depend on.

    Raises:
        InputError: the file cannot be read or written, or a line in it is damaged.
    """

    def __init__(self, path: Path, settings: Record) -> None:
        self._path = path
        self._settings = settings
        self._known: dict[str, list[Any]] = {}
        try:
            records = read_records(path)
        except InputError as error:
            reason, _, _ = str(error).rpartition("; ")  # its remedy is for files of the user's
            raise InputError(
                f"an interrupted calibration cannot go on: {reason}; delete {path} to measure anew"
            ) from error
        self._is_begun = records[:1] == [settings]
        if self._is_begun:
            entries = [entry for entry in records[1:] if {"key", "values"} <= entry.keys()]
            self._known = {entry["key"]: entry["values"] for entry in entries}

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def get(self, key: str, measure: Callable[[], list[Any]]) -> list[Any]:
        """Return the measurement of a key; measure and append it if it is missing.

        Args:
            key: its name.
            measure: returns the measurement, as values that JSON holds.

        Raises:
            InputError: the file cannot be written.
        """
        if key not in self._known:
            values = measure()
            self._begin()
            append_record(self._path, {"key": key, "values": values})
            self._known[key] = values
        return self._known[key]

    def _begin(self) -> None:
        if not self._is_begun:
            with replacing(self._path) as temporary:
                append_record(temporary, self._settings)
            self._is_begun = True
