"""Progress bars of `lacache tune`, and the tables of its result."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from lacache.common.records import Record
from lacache.evals.runs import RunSpec
from lacache.evals.tuning.result import FEWEST_CLEAR, verdict

_KIB = 1024


@final
class TuningBars:
    """One bar for the time, one for the current run."""

    def __init__(self, progress: Progress, minutes: float) -> None:
        self._progress = progress
        self._time = progress.add_task("starting", total=minutes * 60)
        self._run = progress.add_task("", total=None)

    def on_step(self, step: str, seconds: float) -> None:
        """Show the step that begins, after so many seconds of measuring."""
        self._progress.update(self._time, completed=seconds, description=step)

    def on_start(self, spec: RunSpec) -> None:
        """Show the run that begins."""
        self._progress.reset(self._run, total=spec.tokens, description=spec.label)

    def on_tokens(self, num_tokens: int) -> None:
        """Advance the run's bar."""
        self._progress.advance(self._run, num_tokens)


@contextmanager
def tuning_bars(console: Console, minutes: float) -> Iterator[TuningBars]:
    """Show bars on stderr until the block ends."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield TuningBars(progress, minutes)


def show(console: Console, record: Record) -> None:
    """Print the figures that the choice was made on, and the winners on held-out text."""
    rows: list[Record] = record["policies"]
    compared = [row for row in rows if row["compared"] is not None]
    held_out = sorted(
        (row for row in rows if row["held_out"] is not None),
        key=lambda row: (row["name"] == "full", row["held_out"]["perplexity"]),
    )
    console.print(
        f"\n{record['model']} on {record['text']}: {record['capacity']:,} tokens per layer, "
        f"excerpts of {record['length']:,} tokens, "
        f"{record['seconds'] / 60:.1f} minutes of measuring",
        style="bold",
        markup=False,
    )
    console.print(
        "\nCompared on the first half of the text. The choice was made on these figures, so they "
        "flatter what was chosen."
    )
    console.print(_compared_table(compared))
    figures = held_out[0]["held_out"]
    console.print(
        f"The winners on the second half, unused for the choice: {figures['excerpts']} × "
        f"{record['length']:,} tokens and {figures['needles']} other needles."
    )
    console.print(_held_out_table(held_out))
    console.print(
        "Intervals of perplexity are over blocks of the text; those of needles are over excerpts, "
        f"and of fewer than {FEWEST_CLEAR} too narrow to call a difference clear. Loss is that of "
        "a right answer in nats, found the share of right answers. Against StreamingLLM, or vs., "
        "is on the same tokens and needles. * is on the Pareto front: no other is as good in both "
        "and better in one."
    )
    for policy, error in record["failed"].items():
        console.print(Text(f"failed: {policy}: {error}", style="red"), soft_wrap=True)
    if record["untried"]:
        console.print(
            f"Not tried for want of time: {'; '.join(record['untried'])}. With more --minutes they "
            "are; nothing is measured twice.",
            markup=False,
        )


def show_use(
    console: Console,
    record: Record,
    prefer: str,
    num_heads: Sequence[int],
    saved: Path | None,
) -> None:
    """Print the recommendation for each goal, and how to use the preferred one."""
    console.print("\nRecommended, by the figures of the first half:", style="bold")
    by_method = {row["policy"]: row for row in record["policies"]}
    for goal, policy in record["recommended"].items():
        console.print(
            Text(f"  {goal}: {policy} ({record['rules'][goal]}){_held(by_method[policy])}"),
            soft_wrap=True,
        )
    policy = record["recommended"][prefer]
    console.print(f"\nTo use the one for {prefer}:", style="bold")
    budget = record["capacity"]
    shown = policy if saved is None else f"@{saved}"
    lines = [
        "from lacache import LaCache",
        f"cache = LaCache(model, {budget}, {shown!r})",
        f"lacache generate --policy {shown} --budget {budget}",
        f"lacache eval --policy {policy} --budget {budget}",
    ]
    if len(set(num_heads)) == 1 and not policy.startswith("full"):
        lines.append(
            f"lacache inspect --policy {shown} --budget {budget} --layers {len(num_heads)} "
            f"--heads {num_heads[0]} --seen {record['length']}"
        )
    for line in lines:
        console.print(Text(f"  {line}"), soft_wrap=True)


def _compared_table(rows: Sequence[Record]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("policy", overflow="fold", min_width=12)
    for name in ("excerpts", "perplexity", "vs.", "loss", "vs.", "found"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        figures, relative = row["compared"], row["compared_against"]
        table.add_row(
            _label(row, "compared"),
            str(figures["excerpts"]),
            f"{figures['perplexity']:,.2f}",
            f"×{relative['ratio']:.3f}",
            f"{figures['loss']:.2f}",
            f"{relative['loss']:+.2f}",
            f"{figures['score']:.0%}",
        )
    return table


def _held_out_table(rows: Sequence[Record]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("policy", overflow="fold", min_width=10)
    for name in ("", "with 95 % interval", "against StreamingLLM"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        figures, relative = row["held_out"], row["held_out_against"]
        sizes = (figures[name] / _KIB for name in ("mean_bytes", "peak_bytes"))
        values = [
            _with(figures, "perplexity", ",.2f"),
            _with(figures, "loss", ".2f"),
            _with(figures, "score", ".0%"),
            "{:,.0f}, peak {:,.0f}".format(*sizes),
        ]
        is_reference = row["policy"] == "streaming"
        others = [f"×{_with(relative, 'ratio', '.3f')}", _with(relative, "loss", "+.2f")]
        table.add_row(
            _label(row, "held_out"),
            "\n".join(("perplexity", "loss", "found", "mean KiB")),
            Text("\n".join(values)),
            Text("" if is_reference else "\n".join(others)),
            end_section=True,
        )
    return table


def _label(row: Record, part: str) -> Text:
    """Return a policy's text, with a star if it is on the front."""
    if row["name"] == "full":
        return Text("full cache, which has more bytes")
    return Text(f"{row['policy']} *" if row["on_front"][part] else row["policy"])


def _with(figures: Record, name: str, form: str) -> str:
    """Return a figure and its interval."""
    low, high = (format(end, form) for end in figures[f"{name}_interval"])
    return f"{figures[name]:{form}} [{low}, {high}]"


def _held(row: Record) -> str:
    """Return what the held-out half shows about a recommendation."""
    if row["held_out_against"] is None:
        return ""
    if row["policy"] == "streaming":
        return "; nothing that was tried is better at it"
    names: dict[str, Any] = {"perplexity": "perplexity", "loss": "loss of the answers"}
    sides = [
        f"{names[name]} {'no clear difference' if side == 'not clear' else side}"
        for name, side in verdict(row["held_out_against"]).items()
    ]
    return f"; held out, against StreamingLLM: {', '.join(sides)}"
