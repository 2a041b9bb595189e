"""Many runs into one file of records, which goes on where it stopped."""

import json
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
from lacache.evals.runs import Bench, RunSpec, samples_key

_SETTINGS = (
    *("kind", "harness", "task", "length", "count", "seed"),
    *("method", "budget", "protocol", "first_token"),
)
"""What `RunSpec.record` says."""


@final
@dataclass(frozen=True)
class Outcome:
    """What became of one run: a record, or an error."""

    spec: RunSpec
    record: Record | None = None
    error: str = ""
    was_there: bool = False
    """Whether the record was in the file already."""


def run_all(
    bench: Bench,
    specs: Iterable[RunSpec],
    path: Path,
    *,
    on_start: Callable[[RunSpec], None] | None = None,
    on_tokens: Callable[[int], None] | None = None,
) -> Iterator[Outcome]:
    """Run what `path` does not hold yet, and add each record to it as soon as it is there.

    A run that fails goes to the file of failures (`failures_path`) and the others go on; it is
    tried again the next time. So does one whose samples are not those of the file any more, even
    if its record is there. Ctrl-C ends the runs; those that are done are in the file.

    Args:
        bench: the model.
        specs: what to run.
        path: the file of JSON lines; created if missing.
        on_start: called before each run that is not there yet.
        on_tokens: called with the number of tokens after each forward.

    Yields:
        What became of each run, in the order of the specs.

    Raises:
        InputError: the file cannot be read or written.
    """
    validate_appendable(path)
    records = read_records(path)
    by_key = {record.get("key"): record for record in records}
    hashes: dict[str, set[str]] = defaultdict(set)
    for record in records:
        hashes[samples_key(record)].add(str(record.get("samples_sha256")))
    for spec in specs:
        key = bench.key(spec)
        same = hashes[bench.same_samples(spec)]
        if key not in by_key and on_start is not None:
            on_start(spec)
        try:
            _validate_samples(bench, spec, same, path)
            record = by_key[key] if key in by_key else bench.run(spec, on_tokens)
        except Exception as error:
            # Whatever goes wrong with one method must not cost the runs of the others.
            text = " ".join(str(error).split())
            told = text if isinstance(error, LaCacheError) else f"{type(error).__name__}: {text}"
            append_record(failures_path(path), _failure(spec, key, told, error))
            yield Outcome(spec, error=told)
            continue
        was_there = key in by_key
        if not was_there:
            append_record(path, record)
            by_key[key] = record
            same.add(record["samples_sha256"])
        yield Outcome(spec, record, was_there=was_there)


def in_file(
    specs: Iterable[RunSpec], path: Path, *, model: str, dtype: str = "auto"
) -> set[RunSpec]:
    """Which runs a file holds, as far as can be known without the model.

    By the model's name, so weights that have changed under one name are not noticed, nor a profile
    that has.

    Args:
        specs: the runs.
        path: the file of JSON lines; there need not be one.
        model: its name in the records.
        dtype: that of the records; "auto" for any.

    Raises:
        InputError: the file cannot be read.
    """
    there = {
        _settings(record)
        for record in read_records(path)
        if isinstance(about := record.get("model"), dict)
        and about.get("name") == model
        and dtype in ("auto", about.get("dtype"))
    }
    return {spec for spec in specs if _settings(spec.record()) in there}


def _settings(record: Record) -> str:
    return json.dumps([record.get(name) for name in _SETTINGS], sort_keys=True)


def failures_path(path: Path) -> Path:
    """Where the failures of runs into `path` are told, as JSON lines: `eval.failures.log`."""
    return path.with_name(f"{path.stem}.failures.log")


def validate_appendable(path: Path) -> None:
    """Try whether records can be added to a file, before any long work.

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


def _validate_samples(bench: Bench, spec: RunSpec, hashes: Collection[str], path: Path) -> None:
    """Refuse to mix samples: a text file may have changed since the file was begun."""
    if hashes and set(hashes) != {bench.samples_sha256(spec)}:
        raise InputError(
            f"the samples of {spec.task.name} at length {spec.length} are not those of the "
            f"records in {path}, as a text or a package has changed; write to another file "
            "with --out"
        )


def _failure(spec: RunSpec, key: str, told: str, error: Exception) -> Record:
    lines = [] if isinstance(error, LaCacheError) else traceback.format_exception(error)
    return {
        **spec.record(),
        "kind": "failure",
        "key": key,
        "error": told,
        "traceback": "".join(lines),
        "environment": environment(),
    }
