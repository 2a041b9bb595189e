"""Read records of runs from files of JSON lines, and validate them."""

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

_Types = Mapping[str, type | tuple[type, ...]]
_NUMBER = (int, float)
_COMMON: _Types = {
    **dict.fromkeys(("key", "budget", "prefill", "samples_sha256"), str),
    **dict.fromkeys(("harness", "length", "count", "seed"), int),
    **dict.fromkeys(("task", "policy", "model", "environment"), dict),
    **dict.fromkeys(("peak_bytes", "mean_bytes", "full_bytes"), _NUMBER),
    "capacity": (int, float, type(None)),
}
_FIELDS: dict[str, _Types] = {
    "eval": {
        **_COMMON,
        **dict.fromkeys(("score", "nll"), _NUMBER),
        **dict.fromkeys(("score_interval", "nll_interval", "samples"), list),
    },
    "ppl": {
        **_COMMON,
        "perplexity": _NUMBER,
        **dict.fromkeys(("perplexity_interval", "by_position", "nll"), list),
    },
}
_REMEDY = "give files that `lacache eval` has written"


def read_runs(paths: Iterable[Path]) -> list[Run]:
    """Read every run in files of JSON lines, in their order.

    Raises:
        InputError: a file cannot be read, holds no run, or a line is not a record of the harness;
            the message names the file and the line.
    """
    runs = []
    for path in paths:
        refuse_device(path)
        try:
            content = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not text ({error.reason}); {_REMEDY}") from error
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}; {_REMEDY}") from error
        found = [
            Run(_record(line, f"{path}:{number}"), f"{path}:{number}")
            # splitlines would also cut at characters that JSON may hold unescaped.
            for number, line in enumerate(content.split("\n"), start=1)
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
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise InputError(
            f"{place}: a record of kind {kind!r} is not one of {', '.join(_FIELDS)}; {_REMEDY}"
        )
    _validate_types(record, _FIELDS[kind], place)
    _validate_values(record, place)
    return record


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a finite number")


def _validate_types(record: Mapping[str, Any], types: _Types, place: str) -> None:
    for name, expected in types.items():
        if name not in record:
            raise InputError(
                f"{place}: the record has no {name}, which the report needs; {_REMEDY}"
            )
        value = record[name]
        if not isinstance(value, expected) or isinstance(value, bool):
            raise InputError(
                f"{place}: {name}={str(value)[:40]} is of the wrong type "
                f"{type(value).__name__}; {_REMEDY}"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{place}: {name}={value} must be finite; {_REMEDY}")


def _validate_values(record: Record, place: str) -> None:
    def require(holds: bool, rule: str) -> None:
        if not holds:
            raise InputError(f"{place}: {rule}; {_REMEDY}")

    for name in ("task", "policy", "model"):
        _validate_types(record[name], {"name": str}, f"{place}: {name}")
    try:
        parse_budget(record["budget"])
    except ConfigError as error:
        raise InputError(f"{place}: {error}") from error
    # Older records have neither.
    kv_dtype, bits = record.get("kv_dtype"), record.get("kv_bits")
    require(kv_dtype is None or isinstance(kv_dtype, str), "kv_dtype must be a text or null")
    require(bits is None or _are_numbers([bits]), "kv_bits must be a number")
    for name, value in record.items():
        if name.endswith("_interval"):
            require(_are_numbers(value, 2), f"{name} must be two numbers")
    if record["kind"] == "ppl":
        losses, distances = record["nll"], record.get("last_seen", [])
        require(bool(losses) and _are_numbers(losses), "nll must be numbers, at least one")
        fits = _are_numbers(distances) and len(distances) in (0, len(losses))
        require(fits, "last_seen must be a number for each of nll")
        for bucket in record["by_position"]:
            require(_are_numbers(bucket, 3), "by_position must be triples of numbers")
        return
    require(bool(record["samples"]), "samples are empty")
    for sample in record["samples"]:
        require(isinstance(sample, dict), f"a sample is a {type(sample).__name__}")
        _validate_types(sample, {"score": _NUMBER, "nll": _NUMBER}, f"{place}: a sample")


def _are_numbers(values: Any, count: int | None = None) -> bool:
    return (
        isinstance(values, list)
        and count in (None, len(values))
        and all(
            isinstance(value, _NUMBER) and not isinstance(value, bool) and math.isfinite(value)
            for value in values
        )
    )
