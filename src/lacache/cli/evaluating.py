"""Run a list of runs with progress, and show what came out: shared by all that evaluate."""

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

from lacache.cli.run_labels import (
    budget_label,
    in_words,
    method_label,
    protocol_label,
    task_label,
)
from lacache.common.records import Record
from lacache.evals.campaign import Outcome, failures_path, run_all
from lacache.evals.methods.full import FullCache
from lacache.evals.runs import Bench, RunSpec
from lacache.models import LoadedModel

_KIB = 1024


def evaluate(
    specs: Sequence[RunSpec], loaded: LoadedModel, out: Path, *, as_json: bool = False
) -> None:
    """Run what `out` does not hold yet, with progress on stderr, and print tables or JSON.

    Ends with exit code 1 and the command to go on with if any run has failed.

    Raises:
        InputError: the file cannot be read or written.
    """
    console = Console(stderr=True, highlight=False)
    bench = Bench(loaded)
    outcomes: list[Outcome] = []
    try:
        with _progress(console, specs) as (on_start, on_tokens, on_end):
            for outcome in run_all(bench, specs, out, on_start=on_start, on_tokens=on_tokens):
                outcomes.append(outcome)
                on_end(outcome)
                if not outcome.was_there:
                    console.print(Text(_told(outcome)), soft_wrap=True)
    except KeyboardInterrupt:
        told = f"{len(outcomes)} of {len(specs)} runs are done; the same command goes on there"
        console.print(told, soft_wrap=True)
        raise
    old = sum(outcome.was_there for outcome in outcomes)
    if old:
        runs = "run was" if old == 1 else "runs were"
        console.print(f"{old} of {len(outcomes)} {runs} in {out} already, and skipped.")
    if as_json:
        typer.echo(json.dumps(_json(outcomes, out), allow_nan=False))
    else:
        _show(Console(highlight=False), outcomes, loaded.name, out)
    failed = sum(outcome.record is None for outcome in outcomes)
    if failed:
        # On stderr, where it is the last line of the tables as well as of JSON.
        others = "" if failed == len(outcomes) else f", the others are in {out}"
        told = (
            f"{failed} of {len(outcomes)} runs failed{others}; to try what failed again: "
            f"{shlex.join(['lacache', *sys.argv[1:]])}"
        )
        console.print(Text(told), soft_wrap=True)
        raise typer.Exit(1)


@contextmanager
def _progress(
    console: Console, specs: Sequence[RunSpec]
) -> Iterator[tuple[Callable[[RunSpec], None], Callable[[int], None], Callable[[Outcome], None]]]:
    """Two bars, over all runs and within one: how to start, advance and end a run."""
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


def _told(outcome: Outcome) -> str:
    record = outcome.record
    if record is None:
        return f"{outcome.spec.label}: failed: {outcome.error}"
    return f"{outcome.spec.label}: {_value(record)} in {record['seconds']:.0f} s"


def _value(record: Record) -> str:
    if record["kind"] == "ppl":
        return f"perplexity {record['perplexity']:,.2f}"
    return f"score {record['score']:.2f}"


def _json(outcomes: Sequence[Outcome], out: Path) -> Record:
    """Records without what is there for each sample or token."""
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
        is_ppl = rows[0].spec.record()["kind"] == "ppl"
        table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
        table.add_column("method", overflow="fold", min_width=14)
        table.add_column("budget", no_wrap=True)
        values = ("perplexity",) if is_ppl else ("score", "nll")
        for name in (*values, "mean KiB", "peak KiB", "of full"):
            table.add_column(name, justify="right", no_wrap=True)
        for outcome in rows:
            method = in_words(method_label(outcome.spec))
            table.add_row(method, budget_label(outcome.spec), *_cells(outcome))
        console.print(table)
    console.print(
        "With 95 % intervals over the samples (blocks of the text for perplexity). nll is the loss "
        "of the right answer in nats; of full is the peak over what a full cache holds at the end."
    )
    if any(outcome.spec.protocol == "dense" for outcome in outcomes):
        console.print(
            "In the dense protocol bytes are counted after the dense pass, which holds the whole "
            "prompt."
        )
    failed = [outcome for outcome in outcomes if outcome.record is None]
    for outcome in failed:
        told = f"failed: {outcome.spec.label}: {outcome.error}"
        console.print(Text(told, style="red"), soft_wrap=True)
    if failed:
        console.print(f"Failures are in {failures_path(out)}, too.", soft_wrap=True, markup=False)
    if len(failed) < len(outcomes):
        console.print(
            f"Records are in {out}; lacache report {out} makes a page of them.",
            soft_wrap=True,
            markup=False,
        )


def _groups(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """Outcomes by what they can be compared in; the full cache's stand in every protocol."""
    groups: dict[str, list[Outcome]] = {}
    everywhere: dict[tuple[object, ...], list[Outcome]] = {}
    for outcome in outcomes:
        spec = outcome.spec
        samples = (spec.task, spec.length, spec.count, spec.seed)
        count = (
            ""
            if spec.record()["kind"] == "ppl"
            else f", {spec.count} sample{'s' * (spec.count > 1)}"
        )
        title = f"{task_label(spec)}, {spec.length:,} tokens{count}"
        if isinstance(spec.method, FullCache):
            everywhere.setdefault(samples, []).append(outcome)
            groups.setdefault(title, []).append(outcome)
            continue
        if spec.protocol != "strict":
            title += f", {protocol_label(spec)}"
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
