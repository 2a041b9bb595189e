"""Many runs into one file of records, which continues where it stopped."""

import json
import math
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from lacache.common.records import (
    Record,
    append_record,
    environment,
    read_records,
    validate_writable,
)
from lacache.errors import InputError, LaCacheError
from lacache.evals.runner import EvalRunner, samples_key
from lacache.evals.runs import RunSpec

_SETTINGS = (
    *("kind", "harness", "task", "length", "count", "seed"),
    *("policy", "budget", "prefill", "first_token", "kv_dtype"),
)
"""The keys of `RunSpec.record`. Records made before there was a kv_dtype have none."""


@final
@dataclass(frozen=True)
class Outcome:
    """The result of one run: a record, or an error."""

    spec: RunSpec
    record: Record | None = None
    error: str = ""
    was_recorded: bool = False
    """Whether the file held the record already."""


def run_all(
    runner: EvalRunner,
    specs: Iterable[RunSpec],
    path: Path,
    *,
    minutes: float | None = None,
    on_start: Callable[[RunSpec], None] | None = None,
    on_tokens: Callable[[int], None] | None = None,
) -> Iterator[Outcome]:
    """Run what `path` does not hold yet, and append each record as soon as it is made.

    A run that fails is logged to the file of failures (`failures_path`) and the others continue; it
    is tried again the next time. A run also fails if its samples differ from those of the file,
    even if its record is there. Ctrl-C ends the runs; those that are done are in the file.

    Args:
        runner: runs them on a model.
        specs: what to run.
        path: the file of JSON lines; created if missing.
        minutes: no run begins after so long; None for no limit.
        on_start: called before each run that is not recorded yet.
        on_tokens: called with the number of tokens after each forward.

    Yields:
        The outcome of each run, in the order of the specs; of those in the file already, also
        after the limit.

    Raises:
        InputError: the file cannot be read or written.
    """
    validate_appendable(path)
    records = read_records(path)
    by_key = {record.get("key"): record for record in records}
    hashes: dict[str, set[str]] = defaultdict(set)
    for record in records:
        hashes[samples_key(record)].add(str(record.get("samples_sha256")))
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
    for spec in specs:
        key = runner.key(spec)
        same = hashes[runner.samples_key(spec)]
        was_recorded = key in by_key
        if not was_recorded and time.monotonic() > deadline:
            continue
        if not was_recorded and on_start is not None:
            on_start(spec)
        try:
            _validate_samples(runner, spec, same, path)
            record = by_key[key] if was_recorded else runner.run(spec, on_tokens)
        except Exception as error:
            # An error of one policy must not cost the runs of the others.
            message = " ".join(str(error).split())
            if not isinstance(error, LaCacheError):
                message = f"{type(error).__name__}: {message}"
            append_record(failures_path(path), _failure(spec, key, message, error))
            yield Outcome(spec, error=message)
            continue
        if not was_recorded:
            append_record(path, record)
            by_key[key] = record
            same.add(record["samples_sha256"])
        yield Outcome(spec, record, was_recorded=was_recorded)


def recorded_specs(
    specs: Iterable[RunSpec], path: Path, *, model: str, dtype: str = "auto"
) -> set[RunSpec]:
    """Return which runs a file holds, as far as that is known without the model.

    Models are compared by name, so weights or a profile that changed under one name are not
    noticed.

    Args:
        specs: the runs.
        path: the file of JSON lines; it may be missing.
        model: its name in the records.
        dtype: that of the records; "auto" for any.

    Raises:
        InputError: the file cannot be read.
    """
    recorded = {
        _settings(record)
        for record in read_records(path)
        if isinstance(about := record.get("model"), dict)
        and about.get("name") == model
        and dtype in ("auto", about.get("dtype"))
    }
    return {spec for spec in specs if _settings(spec.record()) in recorded}


def _settings(record: Record) -> str:
    return json.dumps([record.get(name) for name in _SETTINGS], sort_keys=True)


def failures_path(path: Path) -> Path:
    """Return where the failures of runs into `path` are logged: `eval.failures.log`."""
    return path.with_name(f"{path.stem}.failures.log")


def validate_appendable(path: Path) -> None:
    """Check that records can be appended to a file, before any long work.

    Raises:
        InputError: they cannot, or the file holds something else.
    """
    read_records(path)
    if not path.exists():
        validate_writable(path.parent)
        return
    try:
        path.open("ab").close()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; try another file") from error


def _validate_samples(
    runner: EvalRunner, spec: RunSpec, hashes: Collection[str], path: Path
) -> None:
    """Refuse to mix samples: a text file may have changed since the file was begun."""
    if hashes and set(hashes) != {runner.samples_sha256(spec)}:
        raise InputError(
            f"the samples of {spec.task.name} at length {spec.length} are not those of the "
            f"records in {path}, as a text or a package has changed; write to another file "
            "with --out"
        )


def _failure(spec: RunSpec, key: str, message: str, error: Exception) -> Record:
    lines = [] if isinstance(error, LaCacheError) else traceback.format_exception(error)
    return {
        **spec.record(),
        "kind": "failure",
        "key": key,
        "error": message,
        "traceback": "".join(lines),
        "environment": environment(),
    }
