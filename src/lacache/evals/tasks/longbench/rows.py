"""LongBench's data, from a folder or from the hub."""

import json
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from lacache.errors import InputError

HUB = "THUDM/LongBench"
_KEYS = ("input", "context", "answers")


@cache
def load_rows(dataset: str, folder: str | None) -> tuple[dict[str, Any], ...]:
    """The rows of a data set, with at least `input`, `context` and `answers`.

    Args:
        dataset: such as "qasper".
        folder: holds `<dataset>.jsonl` in LongBench's format; without it, the hub's data.zip.

    Raises:
        InputError: the data cannot be had or are not in that format.
    """
    if folder is None:
        place, raw = f"{HUB} on the hub", _from_hub(dataset)
    else:
        path = Path(folder).expanduser() / f"{dataset}.jsonl"
        try:
            place, raw = str(path), path.read_bytes()
        except OSError as error:
            raise InputError(
                f"{path} cannot be read ({error.strerror}); give a folder that holds the files "
                "of LongBench's data.zip"
            ) from error
    rows = tuple(
        _row(line, place, number) for number, line in enumerate(raw.splitlines(), 1) if line.strip()
    )
    if not rows:
        raise InputError(f"{place} has no rows of {dataset}; give another folder")
    return rows


def _row(line: bytes, place: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(
            f"line {number} of {place} is not JSON ({error}); get the file again"
        ) from error
    if not isinstance(row, dict) or any(key not in row for key in _KEYS) or not row["answers"]:
        raise InputError(
            f"line {number} of {place} must have {', '.join(_KEYS)} as LongBench's rows do; "
            "get the file again"
        )
    return row


def _from_hub(dataset: str) -> bytes:
    from huggingface_hub import hf_hub_download

    try:
        archive = hf_hub_download(HUB, "data.zip", repo_type="dataset")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{HUB} cannot be had from the hub ({type(error).__name__}); unpack its data.zip "
            "where there is a network and give folder=FOLDER"
        ) from error
    with ZipFile(archive) as files:
        return files.read(f"data/{dataset}.jsonl")
