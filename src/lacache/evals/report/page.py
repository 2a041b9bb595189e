"""The page of a report: Markdown with conclusions, tables and links to its plots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lacache.common.records import Record, replacing, validate_writable
from lacache.evals.plots.style import require_matplotlib
from lacache.evals.report.arrange import Report, arrange
from lacache.evals.report.by_task import TaskTable, by_task
from lacache.evals.report.figures import Figure, section_figures
from lacache.evals.report.run import BASE, Run, budget_label, split_draws
from lacache.evals.report.tables import MeanRow, Row, Section, Table
from lacache.evals.report.text import (
    NOTHING,
    bytes_ratio,
    conclusions,
    draw_conclusions,
    kib,
    markdown_table,
    number,
    ratio,
    share,
    signed,
    with_interval,
)

PAGE = "report.md"
_MOST_ROWS = 12
"""Further rows of one budget are folded."""
_ENVIRONMENT = ("lacache", "commit", "torch", "transformers", "python", "processor", "threads")
Columns = tuple[tuple[str, Callable[[Any], str]], ...]
"""Headings, and how a row is shown under each."""

_MEAN_COLUMNS: Columns = (
    ("policy", lambda row: row.policy + ("" if row.is_complete else " (partly)")),
    ("tables", lambda row: f"{row.tables} of {row.tables_in_all}"),
    ("mean score", lambda row: number(row.mean)),
    ("with signal", lambda row: str(row.signal_tables)),
    ("mean score there", lambda row: with_interval(row.signal_mean)),
    ("paired", lambda row: str(row.paired_tables or NOTHING)),
    ("of StreamingLLM's mean", lambda row: ratio(row.against_base)),
    ("bytes of StreamingLLM's", lambda row: bytes_ratio(row.mean_of_base)),
)
_POLICY: Columns = (
    ("policy", lambda row: row.policy if row.draws == 1 else f"{row.policy}, {row.draws} draws"),
)
_BYTES: Columns = (
    ("mean KiB", lambda row: kib(row.mean_bytes)),
    ("of StreamingLLM's", lambda row: bytes_ratio(row.mean_of_base)),
    ("of full", lambda row: share(row.mean_of_full)),
    ("peak KiB", lambda row: kib(row.peak_bytes)),
    ("of full", lambda row: share(row.peak_of_full)),
)
_PPL_COLUMNS: Columns = (
    *_POLICY,
    ("perplexity", lambda row: with_interval(row.value, row.low, row.high)),
    ("of StreamingLLM's", lambda row: ratio(row.against_base)),
    ("of far tokens", lambda row: ratio(row.far_against_base)),
    *_BYTES,
)
_SCORE_COLUMNS: Columns = (
    *_POLICY,
    ("score", lambda row: with_interval(row.value, row.low, row.high)),
    ("minus StreamingLLM", lambda row: signed(row.against_base)),
    ("loss of the answer", lambda row: with_interval(row.loss, row.loss_low, row.loss_high)),
    ("minus StreamingLLM", lambda row: signed(row.loss_against_base)),
    *_BYTES,
)
_LEGEND = """## How to read this

- Intervals are 95 % bootstrap intervals: over samples for scores and losses of answers, over
  blocks of consecutive tokens for perplexity; a single sample has none. Differences and ratios are
  paired on the same samples, and bold where their interval excludes "no difference".
- Budgets are tokens per layer, or per cent of the prompt's tokens (the document's for perplexity),
  or bytes.
- Bytes are keys and values over all layers, as they are stored; "bits" is what a number of them
  takes there, scales included. "Mean" is over time (and samples), "peak" the most
  ever held. "Of full" compares the mean with the full cache's mean on the same samples, and the
  peak with what a full cache holds at the end. Neither counts a dense pass, which holds the whole
  prompt: a dense prefill saves bytes after it, not during it.
- "Of StreamingLLM" compares the mean bytes at the same budget; bold is more than 2 % off, so that
  such a row is not a comparison at equal bytes.
- Samples of several seeds are pooled where all else is equal.
- The loss of an answer is that of the right answer, in nats for the whole of it.
- A table has signal where the full cache scores at least 0.5; without a full cache signal is
  unknown.
- Far tokens are those that occurred last farther back than the budget's tokens per layer: only a
  cache of more than the newest tokens can help with them. They depend on the document alone.
- Random draws are runs that differ only by the seed of their policy; they make one row with their
  median and the interval in which 95 % of them lie.
- The best of many settings on some samples is best there partly by chance, and intervals do not
  account for the choice: confirm it on other samples.
"""


def report_record(runs: Sequence[Run]) -> Record:
    """Return the numbers of all tables as plain JSON.

    Raises:
        InputError: runs of the same samples cannot be paired.
    """
    return arrange(runs).record()


def write_report(
    runs: Sequence[Run], folder: Path, on_figure: Callable[[int, int], None] | None = None
) -> list[Path]:
    """Write `report.md` and its PNGs; files of the same names are replaced.

    Args:
        runs: from `read_runs`.
        folder: created if missing.
        on_figure: called after each figure with the numbers of figures drawn and of all figures.

    Returns:
        The files, the page first.

    Raises:
        InputError: the folder cannot be written, or runs of the same samples cannot be paired.
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    report = arrange(runs)
    validate_writable(folder)
    by_section = [
        section_figures(i, part, report) for i, part in enumerate(report.sections, start=1)
    ]
    figures = [figure for several in by_section for figure in several]
    for done, figure in enumerate(figures, start=1):
        figure.draw(folder / figure.name)
        if on_figure is not None:
            on_figure(done, len(figures))
    page = folder / PAGE
    # Written last, so that a page never links to a missing figure.
    with replacing(page) as temporary:
        temporary.write_text(page_text(report, by_section), encoding="utf-8")
    return [page, *(folder / figure.name for figure in figures)]


def page_text(report: Report, figures: Sequence[Sequence[Figure]]) -> str:
    """Return the page in Markdown, with links to the figures of each section."""
    parts = ["# Quality of bounded caches\n", _conclusions(report), _runs(report)]
    for i, (part, shown) in enumerate(zip(report.sections, figures, strict=True), start=1):
        parts += [f"## {i}. {part.setting.label}\n", _means(part)]
        parts += map(_by_task, by_task(part, report.tasks))
        for figure in shown:
            alternative = figure.caption.replace("[", "(").replace("]", ")")
            parts.append(f"![{alternative}]({figure.name})\n\n{figure.caption}\n")
        parts += map(_table, part.tables)
    return "\n".join(part for part in [*parts, _LEGEND] if part)


def _conclusions(report: Report) -> str:
    lines = []
    for i, part in enumerate(report.sections, start=1):
        if sentences := conclusions(part):
            lines += [f"**{i}. {part.setting.label}**\n", *(f"- {line}" for line in sentences), ""]
    return "\n".join(lines)


def _runs(report: Report) -> str:
    """Return the part of the page on what was run, where and with which settings."""
    rows = []
    for i, part in enumerate(report.sections, start=1):
        tables = part.tables
        cells = [table.cell for table in tables]
        records = sum(len(run.cell.seeds) for table in tables for run in table.all_runs)
        rows.append(
            [
                str(i),
                part.setting.label,
                NOTHING if part.kv_bits is None else f"{part.kv_bits:.3g}",
                str(records),
                ", ".join(dict.fromkeys(report.tasks[cell.task] for cell in cells)),
                _listed({cell.length for cell in cells}),
                _listed({cell.count for cell in cells}),
                _listed({seed for cell in cells for seed in cell.seeds}),
            ]
        )
    head = ("", "setting", "bits", "records", "tasks", "lengths", "samples", "seeds")
    text = "## What was run\n\n" + markdown_table(head, rows, left_aligned=len(head))
    text += f"\n{_environments(report.runs)}\n{_settings(report)}"
    if report.notes:
        text += "\n" + "\n".join(f"- {note}" for note in report.notes) + "\n"
    return text


def _listed(values: set[int]) -> str:
    ordered = sorted(values)
    if len(ordered) > 3 and len(ordered) == ordered[-1] - ordered[0] + 1:
        return f"{ordered[0]:,} to {ordered[-1]:,}"
    return ", ".join(f"{value:,}" for value in ordered)


def _environments(runs: Sequence[Run]) -> str:
    counted = Counter(
        tuple(str(run.record["environment"].get(name) or NOTHING) for name in _ENVIRONMENT)
        for run in runs
    )
    rows = []
    for values, count in counted.most_common():
        named = dict(zip(_ENVIRONMENT, values, strict=True))
        # The suffix of a hash of 40 digits marks changed files.
        commit, dirty, _ = named["commit"].partition("-dirty")
        rows.append([str(count), *(named | {"commit": commit[:12] + dirty}).values()])
    return markdown_table(("records", *_ENVIRONMENT), rows, left_aligned=1 + len(_ENVIRONMENT))


def _settings(report: Report) -> str:
    """Return all settings of the policies, of which the tables show only those that differ."""
    found: dict[str, Record] = {}
    for part in report.sections:
        for table in part.tables:
            drawn = {label for b in table.budgets for label in split_draws(table.at(b))[1]}
            for run in table.all_runs:
                if run.policy not in drawn:
                    found[report.policies[run.policy_key]] = run.record["policy"]
    lines = []
    for label, policy in sorted(found.items()):
        # A setting of None is left to the policy.
        shown = {k: v for k, v in policy.items() if k != "name" and v not in (None, [])}
        settings = ", ".join(f"{key}={value}" for key, value in shown.items())
        lines.append(f"- {label}: {settings or 'no settings'}\n")
    return _folded(f"Settings of {len(lines)} policies", "".join(lines))


def _means(part: Section) -> str:
    if len(part.tables) < 2 or not part.means:
        return ""
    text = "### Mean over tasks\n\n" + _by_budget(_MEAN_COLUMNS, part.means)
    if any(not row.is_complete for row in part.means):
        text += (
            "\n(partly): not run on all tables of the budget, so this mean is over other tasks "
            "than the others and is not to be compared with them.\n"
        )
    return text


def _by_task(table: TaskTable) -> str:
    mean = f"mean of {table.mean_of}"
    head = ["budget", "policy", *table.columns, mean, "of StreamingLLM's", "of the full cache's"]
    rows = []
    last = None
    for row in table.rows:
        rows.append(
            [
                "" if row.budget == last else budget_label(row.budget),
                row.policy,
                *(NOTHING if value is None else f"{value:.2f}" for value in row.values),
                NOTHING if row.mean is None else with_interval(*row.mean),
                ratio(row.against_base),
                ratio(row.against_full),
            ]
        )
        last = row.budget
    return f"### {table.title}\n\n{markdown_table(head, rows, left_aligned=2)}"


def _table(table: Table) -> str:
    cell, full, runs = table.cell, table.full, table.runs
    columns = _PPL_COLUMNS if table.is_ppl else _SCORE_COLUMNS
    samples = "" if table.is_ppl else f", {cell.count} sample{'s' * (cell.count > 1)}"
    seeds = cell.seeds_label.capitalize()
    text = f"### {table.label}\n\n{seeds}{samples}, hash {cell.samples[:12]}.\n\n"
    if full is not None and runs and full.setting != runs[0].setting:
        text += f"The full cache is from a {full.setting.prefill} prefill.\n\n"
    rows = [] if table.full_row is None else [table.full_row]
    folded = ""
    for budget, found in table.by_budget.items():
        # StreamingLLM is never folded, as everything is compared with it.
        shown = [row for i, row in enumerate(found) if i < _MOST_ROWS or row.name == BASE]
        rest = [row for row in found if row not in shown]
        rows += shown
        if rest:
            title = f"{len(rest)} more policies at {budget_label(budget)}"
            folded += "\n" + _folded(title, _by_budget(columns, rest))
    text += _by_budget(columns, rows) + folded
    if sentences := draw_conclusions(table):
        text += "\n" + "".join(f"- {sentence}\n" for sentence in sentences)
    return text + ("\n" + _positions(table) if table.is_ppl else "")


def _positions(table: Table) -> str:
    """Return perplexity by position, where the records have the same buckets."""
    found = [] if table.full_row is None else [table.full_row]
    for rows in table.by_budget.values():
        found += [row for row in rows if row.draws == 1][:_MOST_ROWS]
    edges = {tuple((start, stop) for start, stop, _ in row.by_position) for row in found}
    if len(edges) != 1 or not (buckets := edges.pop()):
        return ""
    places = [
        (f"{int(start):,} to {int(stop) - 1:,}", lambda row, i=i: number(row.by_position[i][2]))
        for i, (start, stop) in enumerate(buckets)
    ]
    return "Perplexity of tokens:\n\n" + _by_budget((*_POLICY, *places), found)


def _by_budget(columns: Columns, rows: Sequence[Row | MeanRow]) -> str:
    """Return a table that names each budget in its first row only."""
    cells = []
    last = None
    for row in rows:
        budget = "" if row.budget == last else budget_label(row.budget)
        cells.append([budget, *(show(row) for _, show in columns)])
        last = row.budget
    return markdown_table(["budget", *(head for head, _ in columns)], cells, left_aligned=2)


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n</details>\n"
