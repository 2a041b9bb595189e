"""The page of a report: Markdown with conclusions, tables and links to its plots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lacache.common.records import Record, replacing, validate_writable
from lacache.evals.plots.style import require_matplotlib
from lacache.evals.report.figures import Figure, section_figures
from lacache.evals.report.numbers import Numbers, SectionNumbers, TableNumbers, as_record, compute
from lacache.evals.report.rows import MeanRow, Row
from lacache.evals.report.run import BASE, Run, budget_label
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
_MEAN_HEAD = (
    "budget",
    "policy",
    "tables",
    "mean score",
    "with signal",
    "mean score there",
    "paired",
    "of StreamingLLM's mean",
    "bytes of StreamingLLM's",
)
_PPL_HEAD = ("perplexity", "of StreamingLLM's", "of far tokens")
_SCORE_HEAD = ("score", "minus StreamingLLM", "loss of the answer", "minus StreamingLLM")
_BYTES_HEAD = ("mean KiB", "of StreamingLLM's", "of full", "peak KiB", "of full")
_LEGEND = """## How to read this

- Intervals are 95 % bootstrap intervals: over samples for scores and losses of answers, over
  blocks of consecutive tokens for perplexity; a single sample has none. Differences and ratios are
  paired on the same samples, and bold where their interval excludes "no difference".
- Budgets are tokens per layer, or per cent of the prompt's tokens (the document's for perplexity),
  or bytes.
- Bytes are keys and values over all layers. "Mean" is over time (and samples), "peak" the most
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
    return as_record(compute(runs))


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
    numbers = compute(runs)
    validate_writable(folder)
    by_section = [
        section_figures(i, part, numbers) for i, part in enumerate(numbers.sections, start=1)
    ]
    figures = [figure for several in by_section for figure in several]
    for done, figure in enumerate(figures, start=1):
        figure.draw(folder / figure.name)
        if on_figure is not None:
            on_figure(done, len(figures))
    page = folder / PAGE
    # Written last, so that a page never links to a missing figure.
    with replacing(page) as temporary:
        temporary.write_text(page_text(numbers, by_section), encoding="utf-8")
    return [page, *(folder / figure.name for figure in figures)]


def page_text(numbers: Numbers, figures: Sequence[Sequence[Figure]]) -> str:
    """Return the page in Markdown, with links to the figures of each section."""
    parts = ["# Quality of bounded caches\n", _conclusions(numbers), _runs(numbers)]
    for i, (part, shown) in enumerate(zip(numbers.sections, figures, strict=True), start=1):
        parts += [f"## {i}. {part.label}\n", _means(part)]
        for figure in shown:
            alternative = figure.caption.replace("[", "(").replace("]", ")")
            parts.append(f"![{alternative}]({figure.name})\n\n{figure.caption}\n")
        parts += [_table(table, numbers.policies) for table in part.tables]
    return "\n".join(part for part in [*parts, _LEGEND] if part)


def _conclusions(numbers: Numbers) -> str:
    lines = []
    for i, part in enumerate(numbers.sections, start=1):
        if sentences := conclusions(part):
            lines += [f"**{i}. {part.label}**\n", *(f"- {line}" for line in sentences), ""]
    return "\n".join(lines)


def _runs(numbers: Numbers) -> str:
    """Return the part of the page on what was run, where and with which settings."""
    rows = []
    for i, part in enumerate(numbers.sections, start=1):
        tables = part.section.tables
        cells = [table.cell for table in tables]
        records = sum(len(run.cell.seeds) for table in tables for run in table.all_runs)
        rows.append(
            [
                str(i),
                part.label,
                str(records),
                ", ".join(dict.fromkeys(numbers.tasks[cell.task] for cell in cells)),
                _listed({cell.length for cell in cells}),
                _listed({cell.count for cell in cells}),
                _listed({seed for cell in cells for seed in cell.seeds}),
            ]
        )
    head = ("", "setting", "records", "tasks", "lengths", "samples", "seeds")
    text = "## What was run\n\n" + markdown_table(head, rows, left_aligned=len(head))
    text += f"\n{_environments(numbers.runs)}\n{_settings(numbers)}"
    if numbers.notes:
        text += "\n" + "\n".join(f"- {note}" for note in numbers.notes) + "\n"
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


def _settings(numbers: Numbers) -> str:
    """Return all settings of the policies, of which the tables show only those that differ."""
    found: dict[str, Record] = {}
    for part in numbers.sections:
        for table in part.tables:
            drawn = {label for budget in table.by_budget for label in table.draws(budget)}
            for run in table.table.all_runs:
                if run.policy not in drawn:
                    found[numbers.policies[run.policy_key]] = run.record["policy"]
    lines = []
    for label, policy in sorted(found.items()):
        # A setting of None is left to the policy.
        shown = {k: v for k, v in policy.items() if k != "name" and v not in (None, [])}
        settings = ", ".join(f"{key}={value}" for key, value in shown.items())
        lines.append(f"- {label}: {settings or 'no settings'}\n")
    return _folded(f"Settings of {len(lines)} policies", "".join(lines))


def _means(part: SectionNumbers) -> str:
    if len(part.tables) < 2 or not part.means:
        return ""
    rows = [(row.budget, _mean_cells(row)) for row in part.means]
    text = "### Mean over tasks\n\n" + _by_budget(_MEAN_HEAD, rows)
    if any(not row.is_complete for row in part.means):
        text += (
            "\n(partly): not run on all tables of the budget, so this mean is over other tasks "
            "than the others and is not to be compared with them.\n"
        )
    return text


def _mean_cells(row: MeanRow) -> list[str]:
    return [
        row.policy + ("" if row.is_complete else " (partly)"),
        f"{row.tables} of {row.tables_in_all}",
        number(row.mean),
        str(row.signal_tables),
        NOTHING if row.signal_mean is None else number(row.signal_mean),
        str(row.paired_tables) if row.paired_tables else NOTHING,
        ratio(row.against_base),
        bytes_ratio(row.mean_of_base),
    ]


def _table(table: TableNumbers, policies: Mapping[str, str]) -> str:
    cell, full, runs = table.table.cell, table.table.full, table.table.runs
    head = ("budget", "policy", *(_PPL_HEAD if table.is_ppl else _SCORE_HEAD), *_BYTES_HEAD)
    samples = "" if table.is_ppl else f", {cell.count} sample{'s' * (cell.count > 1)}"
    seeds = cell.seeds_label.capitalize()
    text = f"### {table.label}\n\n{seeds}{samples}, hash {cell.samples[:12]}.\n\n"
    if full is not None and runs and full.setting != runs[0].setting:
        text += f"The full cache is from a {full.setting.prefill} prefill.\n\n"
    rows = [] if table.full is None else [("", _cells(table.full, is_ppl=table.is_ppl))]
    folded = ""
    for budget, found in table.by_budget.items():
        # StreamingLLM is never folded, as everything is compared with it.
        shown = [row for i, row in enumerate(found) if i < _MOST_ROWS or row.name == BASE]
        rest = [row for row in found if row not in shown]
        rows += [(budget, _cells(row, is_ppl=table.is_ppl)) for row in shown]
        if rest:
            title = f"{len(rest)} more policies at {budget_label(budget)}"
            cells = [(budget, _cells(row, is_ppl=table.is_ppl)) for row in rest]
            folded += "\n" + _folded(title, _by_budget(head, cells))
    text += _by_budget(head, rows) + folded
    if sentences := draw_conclusions(table, policies):
        text += "\n" + "".join(f"- {sentence}\n" for sentence in sentences)
    return text + ("\n" + _positions(table) if table.is_ppl else "")


def _cells(row: Row, *, is_ppl: bool) -> list[str]:
    measured = (
        [ratio(row.against_base), ratio(row.far_against_base)]
        if is_ppl
        else [
            signed(row.against_base),
            with_interval(row.loss, row.loss_low, row.loss_high),
            signed(row.loss_against_base),
        ]
    )
    return [
        row.policy if row.draws == 1 else f"{row.policy}, {row.draws} draws",
        with_interval(row.value, row.low, row.high),
        *measured,
        kib(row.mean_bytes),
        bytes_ratio(row.mean_of_base),
        share(row.mean_of_full),
        kib(row.peak_bytes),
        share(row.peak_of_full),
    ]


def _positions(table: TableNumbers) -> str:
    """Return perplexity by position, where the records have the same buckets."""
    found = [] if table.full is None else [table.full]
    for rows in table.by_budget.values():
        found += [row for row in rows if row.draws == 1][:_MOST_ROWS]
    edges = {tuple((start, stop) for start, stop, _ in row.by_position) for row in found}
    if len(edges) != 1 or not (buckets := edges.pop()):
        return ""
    head = ["budget", "policy", *(f"{int(a):,} to {int(b) - 1:,}" for a, b in buckets)]
    cells = [(row.budget, [row.policy, *(number(v) for *_, v in row.by_position)]) for row in found]
    return "Perplexity of tokens:\n\n" + _by_budget(head, cells)


def _by_budget(head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Return a table that names each budget in its first row only."""
    cells = []
    last = None
    for budget, row in rows:
        cells.append([budget_label(budget) if budget != last else "", *row])
        last = budget
    return markdown_table(head, cells, left_aligned=2)


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n</details>\n"
