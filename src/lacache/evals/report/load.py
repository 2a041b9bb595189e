"""Records of runs from files of JSON lines, checked before anything is made of them."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from lacache.common.files import parse_json, refuse_device
from lacache.common.records import Record
from lacache.errors import ConfigError, InputError
from lacache.evals.report.run import Run
from lacache.policies.budget import parse_budget

_NUMBER = (int, float)
_BOTH: dict[str, type | tuple[type, ...]] = {
    "key": str,
    "harness": int,
    "task": dict,
    "length": int,
    "count": int,
    "seed": int,
    "method": dict,
    "budget": str,
    "protocol": str,
    "model": dict,
    "samples_sha256": str,
    "capacity": (int, float, type(None)),
    "peak_bytes": _NUMBER,
    "mean_bytes": _NUMBER,
    "full_bytes": _NUMBER,
    "environment": dict,
}
_NEEDED: dict[str, dict[str, type | tuple[type, ...]]] = {
    "eval": _BOTH
    | {"score": _NUMBER, "score_interval": list, "nll": _NUMBER, "nll_interval": list}
    | {"samples": list},
    "ppl": _BOTH
    | {"perplexity": _NUMBER, "perplexity_interval": list, "by_position": list, "nll": list},
}
_REMEDY = "give files that `lacache eval` has written"


def read_runs(paths: Iterable[Path]) -> list[Run]:
    """Every run in files of JSON lines, in their order.

    Raises:
        InputError: a file cannot be read, holds no run, or a line is not a record of the harness;
            names file and line.
    """
    runs = []
    for path in paths:
        refuse_device(path)
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not text ({error.reason}); {_REMEDY}") from error
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}; {_REMEDY}") from error
        found = [
            Run(_record(line, f"{path}:{number}"), f"{path}:{number}")
            # Not splitlines, which also cuts at characters that JSON may hold as they are.
            for number, line in enumerate(text.split("\n"), start=1)
            if line.strip()
        ]
        if not found:
            raise InputError(f"{path} holds no records; {_REMEDY}")
        runs += found
    return runs


def _record(line: str, place: str) -> Record:
    try:
        record = parse_json(line, parse_constant=_refuse_constant)
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise InputError(
            f"{place}: not a line of JSON ({reason}); delete the line, and run `lacache eval` "
            "again to measure it anew"
        ) from error
    if not isinstance(record, dict):
        raise InputError(f"{place}: a {type(record).__name__} is not a record; {_REMEDY}")
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in _NEEDED:
        raise InputError(
            f"{place}: a record of kind {kind!r} is not one of {', '.join(_NEEDED)}; {_REMEDY}"
        )
    _validate_types(record, _NEEDED[kind], place)
    _validate_parts(record, place)
    return record


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a finite number")


def _validate_types(
    record: Mapping[str, Any], needed: Mapping[str, type | tuple[type, ...]], place: str
) -> None:
    for name, wanted in needed.items():
        if name not in record:
            raise InputError(
                f"{place}: the record has no {name}, which the report needs; {_REMEDY}"
            )
        value = record[name]
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise InputError(
                f"{place}: {name}={str(value)[:40]} is of the wrong type "
                f"{type(value).__name__}; {_REMEDY}"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{place}: {name}={value} must be finite; {_REMEDY}")


def _validate_parts(record: Record, place: str) -> None:
    for name in ("task", "method", "model"):
        _validate_types(record[name], {"name": str}, f"{place}: {name}")
    try:
        parse_budget(record["budget"])
    except ConfigError as error:
        raise InputError(f"{place}: {error}") from error
    intervals = [name for name in record if name.endswith("_interval")]
    for name in intervals:
        if not _are_numbers(record[name]) or len(record[name]) != 2:
            raise InputError(f"{place}: {name} must be two numbers; {_REMEDY}")
    if record["kind"] == "ppl":
        if not record["nll"] or not _are_numbers(record["nll"]):
            raise InputError(f"{place}: nll must be numbers, at least one; {_REMEDY}")
        distances = record.get("last_seen", [])
        if not _are_numbers(distances) or len(distances) not in (0, len(record["nll"])):
            raise InputError(f"{place}: last_seen must be a number for each of nll; {_REMEDY}")
        for bucket in record["by_position"]:
            if not _are_numbers(bucket) or len(bucket) != 3:
                raise InputError(f"{place}: by_position must be triples of numbers; {_REMEDY}")
        return
    if not record["samples"]:
        raise InputError(f"{place}: samples are empty; {_REMEDY}")
    for sample in record["samples"]:
        if not isinstance(sample, dict):
            raise InputError(f"{place}: a sample is a {type(sample).__name__}; {_REMEDY}")
        _validate_types(sample, {"score": _NUMBER, "nll": _NUMBER}, f"{place}: a sample")


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, _NUMBER) and not isinstance(value, bool) and math.isfinite(value)
        for value in values
    )
