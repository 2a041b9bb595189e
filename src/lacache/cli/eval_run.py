"""Run specifications with progress, and print their results."""

import json
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from lacache.common.records import Record
from lacache.evals.record_file import Outcome, failures_path, run_all
from lacache.evals.runner import EvalRunner
from lacache.evals.runs import RunSpec
from lacache.models import LoadedModel

_KIB = 1024


def evaluate(
    specs: Sequence[RunSpec],
    loaded: LoadedModel,
    out: Path,
    *,
    minutes: float | None = None,
    as_json: bool = False,
) -> None:
    """Run what `out` does not hold yet, with progress on stderr, and print tables or JSON.

    After `minutes` no further run begins.

    Exits with code 1 and the command to continue with if any run has failed.

    Raises:
        InputError: the file cannot be read or written.
    """
    console = Console(stderr=True, highlight=False)
    runner = EvalRunner(loaded)
    outcomes: list[Outcome] = []
    try:
        with _progress(console, specs) as (on_start, on_tokens, on_end):
            for outcome in run_all(
                runner, specs, out, minutes=minutes, on_start=on_start, on_tokens=on_tokens
            ):
                outcomes.append(outcome)
                on_end(outcome)
                if not outcome.was_recorded:
                    console.print(Text(_line(outcome)), soft_wrap=True)
    except KeyboardInterrupt:
        done = f"{len(outcomes)} of {len(specs)} runs are done; the same command continues there"
        console.print(done, soft_wrap=True)
        raise
    old = sum(outcome.was_recorded for outcome in outcomes)
    if old:
        runs = "run was" if old == 1 else "runs were"
        console.print(f"{old} of {len(outcomes)} {runs} in {out} already, and skipped.")
    left = len(specs) - len(outcomes)
    if left:
        runs = "run is" if left == 1 else "runs are"
        console.print(
            f"{minutes:g} minutes are over: {left} of {len(specs)} {runs} left; the same command "
            "continues there.",
            soft_wrap=True,
        )
    if as_json:
        typer.echo(json.dumps(_json(outcomes, out), allow_nan=False))
    else:
        _show(Console(highlight=False), outcomes, loaded.name, out)
    failed = sum(outcome.record is None for outcome in outcomes)
    if failed:
        # On stderr, where it is the last line of the tables as well as of JSON.
        others = "" if failed == len(outcomes) else f", the others are in {out}"
        message = (
            f"{failed} of {len(outcomes)} runs failed{others}; to retry them: "
            f"{shlex.join(['lacache', *sys.argv[1:]])}"
        )
        console.print(Text(message), soft_wrap=True)
        raise typer.Exit(1)


@contextmanager
def _progress(
    console: Console, specs: Sequence[RunSpec]
) -> Iterator[tuple[Callable[[RunSpec], None], Callable[[int], None], Callable[[Outcome], None]]]:
    """Show two bars, over all runs and within one; yield how to start, advance and end a run."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        # Runs differ in length, so the time that is left follows from their tokens.
        everything = progress.add_task(
            f"run 1 of {len(specs)}", total=sum(spec.tokens for spec in specs)
        )
        bars: list[Any] = []
        done = [0, 0]

        def on_start(spec: RunSpec) -> None:
            bars.append(progress.add_task(spec.label, total=spec.tokens))

        def on_tokens(num_tokens: int) -> None:
            progress.advance(bars[-1], num_tokens)
            progress.advance(everything, num_tokens)

        def on_end(outcome: Outcome) -> None:
            done[0] += 1
            done[1] += outcome.spec.tokens
            progress.update(
                everything,
                completed=done[1],
                description=f"run {min(done[0] + 1, len(specs))} of {len(specs)}",
            )
            while bars:
                progress.remove_task(bars.pop())

        yield on_start, on_tokens, on_end


def _line(outcome: Outcome) -> str:
    record = outcome.record
    if record is None:
        return f"{outcome.spec.label}: failed: {outcome.error}"
    return f"{outcome.spec.label}: {_value(record)} in {record['seconds']:.0f} s"


def _value(record: Record) -> str:
    if record["kind"] == "ppl":
        return f"perplexity {record['perplexity']:,.2f}"
    return f"score {record['score']:.2f}"


def _json(outcomes: Sequence[Outcome], out: Path) -> Record:
    """Return the records without the figures of each sample or token."""
    return {
        "out": str(out),
        "runs": [_short(outcome.record) for outcome in outcomes if outcome.record is not None],
        "failures": [
            {**outcome.spec.record(), "error": outcome.error}
            for outcome in outcomes
            if outcome.record is None
        ],
    }


def _short(record: Record) -> Record:
    left_out = "nll" if record["kind"] == "ppl" else "samples"
    return {key: value for key, value in record.items() if key != left_out}


def _show(console: Console, outcomes: Sequence[Outcome], model: str, out: Path) -> None:
    for title, rows in _groups(outcomes).items():
        console.print(f"\n{title}, {model}", style="bold", markup=False)
        is_ppl = rows[0].spec.is_perplexity
        table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
        table.add_column("policy", overflow="fold", min_width=14)
        table.add_column("budget", no_wrap=True)
        values = ("perplexity",) if is_ppl else ("score", "nll")
        for name in (*values, "mean KiB", "peak KiB", "of full"):
            table.add_column(name, justify="right", no_wrap=True)
        for outcome in rows:
            policy = spaced(outcome.spec.policy)
            table.add_row(policy, outcome.spec.budget_text, *_cells(outcome))
        console.print(table)
    console.print(
        "With 95 % intervals over the samples (blocks of the text for perplexity). nll is the loss "
        "of the right answer in nats; of full is the peak over what a full cache holds at the end."
    )
    bits = {
        (record["kv_dtype"], record["kv_bits"])
        for outcome in outcomes
        if (record := outcome.record) and record.get("kv_dtype")
    }
    for kv_dtype, number in sorted(bits):
        console.print(
            f"Bytes are keys and values as they are stored: in {kv_dtype} {number:.3g} bits for "
            "each number, scales included."
        )
    if any(outcome.spec.protocol.is_dense for outcome in outcomes):
        console.print(
            "With a dense prefill bytes are counted after the dense pass, which holds the whole "
            "prompt."
        )
    failed = [outcome for outcome in outcomes if outcome.record is None]
    for outcome in failed:
        message = f"failed: {outcome.spec.label}: {outcome.error}"
        console.print(Text(message, style="red"), soft_wrap=True)
    if failed:
        console.print(f"Failures are in {failures_path(out)}, too.", soft_wrap=True, markup=False)
    if len(failed) < len(outcomes):
        console.print(
            f"Records are in {out}; lacache report {out} makes a page of them.",
            soft_wrap=True,
            markup=False,
        )


def _groups(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """Group the outcomes that can be compared; the full cache's stand in every group."""
    groups: dict[str, list[Outcome]] = {}
    everywhere: dict[tuple[object, ...], list[Outcome]] = {}
    for outcome in outcomes:
        spec = outcome.spec
        samples = (spec.task, spec.length, spec.count, spec.seed, spec.kv_dtype)
        count = "" if spec.is_perplexity else f", {spec.count} sample{'s' * (spec.count > 1)}"
        kv_dtype = f", keys and values in {spec.kv_dtype}" if spec.kv_dtype else ""
        title = f"{spec.task_text}, {spec.length:,} tokens{count}{kv_dtype}"
        if spec.is_full:
            everywhere.setdefault(samples, []).append(outcome)
            groups.setdefault(title, []).append(outcome)
            continue
        if spec.protocol.is_dense:
            title += f", {spec.protocol.label}"
        groups.setdefault(title, list(everywhere.get(samples, []))).append(outcome)
    return groups


def _cells(outcome: Outcome) -> list[str]:
    record = outcome.record
    if record is None:
        return ["[red]failed[/red]"]
    if record["kind"] == "ppl":
        values = [_with_interval(record, "perplexity", True)]
    else:
        values = [_with_interval(record, "score", record["count"] > 1), f"{record['nll']:.2f}"]
    sizes = [f"{record[name] / _KIB:,.0f}" for name in ("mean_bytes", "peak_bytes")]
    return [*values, *sizes, f"{record['peak_bytes'] / record['full_bytes']:.0%}"]


def _with_interval(record: Record, name: str, several: bool) -> str:
    low, high = record[f"{name}_interval"]
    # A bracket is markup to rich, unless it is escaped.
    return f"{record[name]:.2f}" + (f" \\[{low:.2f}, {high:.2f}]" if several else "")


def spaced(text: object) -> str:
    """Return a policy or task with spaces, so that a long one can be broken in a table."""
    return str(text).replace(":", ": ")
