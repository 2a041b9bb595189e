"""`lacache report`: write a page of tables and plots from records."""

import json
from pathlib import Path
from typing import Annotated

import typer


def report(
    records: Annotated[
        list[Path], typer.Argument(help="Files of JSON lines that `lacache eval` wrote.")
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for report.md and its plots; created if missing.")
    ] = Path("report"),
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the numbers of all tables as JSON; writes no files."),
    ] = False,
) -> None:
    """Write a Markdown page with tables and plots, from records alone.

    Runs are compared only with runs of the same model, prefill and samples: policies at equal
    budgets, each with StreamingLLM sample by sample. Other runs are shown apart.
    """
    from rich.console import Console
    from rich.progress import Progress

    from lacache.evals.report import read_runs, report_record, write_report

    runs = read_runs(records)
    if as_json:
        typer.echo(json.dumps(report_record(runs), allow_nan=False))
        return
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("Drawing", total=None)
        written = write_report(
            runs, out, lambda done, total: progress.update(bar, completed=done, total=total)
        )
    typer.echo(f"wrote {written[0]} and {len(written) - 1} plots of {len(runs)} records")
