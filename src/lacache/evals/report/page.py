"""The page: Markdown with tables, sentences and links to its pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lacache.common.records import Record, replacing, validate_writable
from lacache.evals.plots.drawing import require_matplotlib
from lacache.evals.report.format import (
    EQUAL_BYTES,
    NOTHING,
    kib,
    markdown_table,
    number,
    ratio,
    share,
    signed,
    with_interval,
)
from lacache.evals.report.means import MeanRow
from lacache.evals.report.numbers import (
    Numbers,
    SectionNumbers,
    TableNumbers,
    as_record,
    work_out,
)
from lacache.evals.report.pictures import Picture, pictures
from lacache.evals.report.rows import Row
from lacache.evals.report.run import Run, budget_label
from lacache.evals.report.summary import draws_beaten, sentences

PAGE = "report.md"
_MOST_ROWS = 12
"""More rows of one budget than these are folded away."""


def report_record(runs: Sequence[Run]) -> Record:
    """The numbers of all tables as plain JSON.

    Raises:
        InputError: runs of the same samples that cannot be paired.
    """
    return as_record(work_out(runs))


def write_report(
    runs: Sequence[Run], folder: Path, on_picture: Callable[[int, int], None] | None = None
) -> list[Path]:
    """Write `report.md` and its PNGs; files of the same names are replaced.

    Args:
        runs: from `read_runs`.
        folder: created if missing.
        on_picture: called after each picture with how many are drawn and how many there are.

    Returns:
        What was written, the page first.

    Raises:
        InputError: the folder cannot be written, or runs of the same samples cannot be paired.
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    numbers = work_out(runs)
    validate_writable(folder)
    drawn = [
        pictures(i, part.section, numbers.methods, numbers.tasks)
        for i, part in enumerate(numbers.sections, start=1)
    ]
    every = [picture for several in drawn for picture in several]
    for done, picture in enumerate(every, start=1):
        picture.draw(folder / picture.name)
        if on_picture is not None:
            on_picture(done, len(every))
    page = folder / PAGE
    # Last, so that a page never links to a picture that is not there.
    with replacing(page) as temporary:
        temporary.write_text(page_text(numbers, drawn), encoding="utf-8")
    return [page, *(folder / picture.name for picture in every)]


def page_text(numbers: Numbers, drawn: Sequence[Sequence[Picture]]) -> str:
    """The page in Markdown, with links to the pictures `drawn` of each section."""
    parts = ["# Quality of bounded caches\n", _conclusions(numbers), _what_was_run(numbers)]
    for i, (part, shown) in enumerate(zip(numbers.sections, drawn, strict=True), start=1):
        parts.append(f"## {i}. {part.section.setting.label}\n")
        parts.append(_means(part))
        parts += [f"![{_plain(p.caption)}]({p.name})\n\n{p.caption}\n" for p in shown]
        parts += [_table(table, numbers.methods) for table in part.tables]
    parts.append(_LEGEND)
    return "\n".join(part for part in parts if part)


_LEGEND = """## How to read this

- Intervals are 95 % bootstrap intervals: over samples for scores and losses of answers, over
  blocks of tokens in a row for perplexity; a single sample has none. Differences and ratios are
  paired on the same samples, and bold where their interval leaves out "no difference".
- Budgets are tokens per layer, or per cent of the prompt's tokens (the text's for perplexity), or
  bytes.
- Bytes are keys and values over all layers. "Mean" is over time (and samples), "peak" the most
  ever held. "Of full" compares the mean with the full cache's mean on the same samples, and the
  peak with what a full cache holds at the end. Neither counts a dense pass, which holds the whole
  prompt: the dense protocol saves bytes after it, not during it.
- "Of StreamingLLM" compares the mean bytes at the same budget; bold is more than 2 % off, so that
  such a row is not a comparison at equal bytes.
- Samples of several seeds are taken together where all else is equal.
- The loss of an answer is that of the right answer, in nats for the whole of it.
- A table has signal where the full cache scores at least 0.5; without a full cache it is not known
  to have any.
- Far tokens are those that followed the same token last farther back than the budget's tokens per
  layer: what only a memory beyond the newest tokens can help with. The text alone tells them.
- Draws by chance are runs that differ by the seed of their method alone; they make one row with
  their median and the interval in which 95 % of them lie.
- The best of many settings on some samples is best there partly by chance, and intervals do not
  know of the choice: confirm it on other samples.
"""


def _conclusions(numbers: Numbers) -> str:
    lines = []
    for i, part in enumerate(numbers.sections, start=1):
        told = sentences(part)
        if told:
            lines.append(f"**{i}. {part.section.setting.label}**\n")
            lines += [*(f"- {sentence}" for sentence in told), ""]
    return "\n".join(lines)


def _what_was_run(numbers: Numbers) -> str:
    rows = []
    for i, part in enumerate(numbers.sections, start=1):
        tables = part.section.tables
        runs = [run for table in tables for run in table.runs]
        runs += [table.full for table in tables if table.full is not None]
        rows.append(
            [
                str(i),
                part.section.setting.label,
                str(sum(len(run.cell.seeds) for run in runs)),
                ", ".join(dict.fromkeys(numbers.tasks[t.cell.task] for t in tables)),
                _listed({t.cell.length for t in tables}),
                _listed({t.cell.count for t in tables}),
                _listed({seed for t in tables for seed in t.cell.seeds}),
            ]
        )
    head = ("", "setting", "records", "tasks", "lengths", "samples", "seeds")
    text = "## What was run\n\n" + markdown_table(head, rows, texts=len(head))
    text += "\n" + _environments(numbers.runs)
    text += "\n" + _methods(numbers)
    if numbers.notes:
        text += "\n" + "\n".join(f"- {note}" for note in numbers.notes) + "\n"
    return text


def _listed(values: set[int]) -> str:
    ordered = sorted(values)
    if len(ordered) > 3 and len(ordered) == ordered[-1] - ordered[0] + 1:
        return f"{ordered[0]:,} to {ordered[-1]:,}"
    return ", ".join(f"{value:,}" for value in ordered)


def _environments(runs: Sequence[Run]) -> str:
    names = ("lacache", "commit", "torch", "transformers", "python", "processor", "threads")
    counted = Counter(
        tuple(str(run.record["environment"].get(name) or NOTHING) for name in names) for run in runs
    )
    rows = []
    for values, count in counted.most_common():
        named = dict(zip(names, values, strict=True))
        # A full hash is 40 digits, and what follows it says that files had changed.
        commit, dirty, _ = named["commit"].partition("-dirty")
        rows.append([str(count), *(named | {"commit": commit[:12] + dirty}).values()])
    return markdown_table(("records", *names), rows, texts=1 + len(names))


def _methods(numbers: Numbers) -> str:
    """Settings in full, as the tables show only those that differ."""
    found: dict[str, Record] = {}
    for part in numbers.sections:
        for table in part.tables:
            drawn = {label for budget in table.by_budget for label in table.draws(budget)}
            for run in (*table.table.runs, *([table.table.full] if table.table.full else [])):
                if run.method not in drawn:
                    found[numbers.methods[run.method_key]] = run.record["method"]
    lines = [
        f"- {label}: {_settings(method) or 'no settings'}"
        for label, method in sorted(found.items())
    ]
    return _folded(f"Settings of {len(lines)} methods", "\n".join(lines) + "\n")


def _settings(method: Record) -> str:
    """What was set; what is None was left to the method."""
    return ", ".join(f"{k}={v}" for k, v in method.items() if k != "name" and v not in (None, []))


def _means(part: SectionNumbers) -> str:
    if len(part.section.tables) < 2 or not part.means:
        return ""
    head = (
        "budget",
        "method",
        "tables",
        "mean score",
        "with signal",
        "mean score there",
        "paired",
        "of StreamingLLM's mean",
        "bytes of StreamingLLM's",
    )
    text = "### Mean over tasks\n\n" + _by_budget(
        head, [(row.budget, _mean_cells(row)) for row in part.means]
    )
    if any(not row.is_complete for row in part.means):
        text += (
            "\n(partly): not run on all tables of the budget, so this mean is over other tasks "
            "than the others and is not to be compared with them.\n"
        )
    return text


def _mean_cells(row: MeanRow) -> list[str]:
    return [
        row.method + ("" if row.is_complete else " (partly)"),
        f"{row.tables} of {row.tables_in_all}",
        number(row.mean),
        str(row.signal_tables),
        NOTHING if row.signal_mean is None else number(row.signal_mean),
        str(row.paired_tables) if row.paired_tables else NOTHING,
        ratio(row.against_base),
        _bytes_of_base(row.mean_of_base),
    ]


def _table(table: TableNumbers, methods: Mapping[str, str]) -> str:
    cell = table.table.cell
    samples = "" if table.is_ppl else f", {cell.count} sample{'s' * (cell.count > 1)}"
    seeds = cell.seeds_label.capitalize()
    text = f"### {table.label}\n\n{seeds}{samples}, hash {cell.samples[:12]}.\n\n"
    full = table.table.full
    if full is not None and table.table.runs and full.setting != table.table.runs[0].setting:
        text += f"The full cache is from the {full.setting.protocol} protocol.\n\n"
    rows = [] if table.full is None else [("", _cells(table.full, is_ppl=table.is_ppl))]
    folded = ""
    for budget, found in table.by_budget.items():
        cells = [(budget, _cells(row, is_ppl=table.is_ppl)) for row in found]
        rows += cells[:_MOST_ROWS]
        # StreamingLLM stays in sight, as everything is compared with it.
        rest = cells[_MOST_ROWS:]
        rows += [c for c, row in zip(rest, found[_MOST_ROWS:], strict=True) if _is_base(row)]
        rest = [c for c, row in zip(rest, found[_MOST_ROWS:], strict=True) if not _is_base(row)]
        if rest:
            folded += "\n" + _folded(
                f"{len(rest)} more methods at {budget_label(budget)}",
                _by_budget(_head(is_ppl=table.is_ppl), rest),
            )
    text += _by_budget(_head(is_ppl=table.is_ppl), rows) + folded
    beaten = draws_beaten(table, methods)
    if beaten:
        text += "\n" + "\n".join(f"- {sentence}" for sentence in beaten) + "\n"
    if table.is_ppl:
        text += "\n" + _positions(table)
    return text


def _is_base(row: Row) -> bool:
    return row.name == "streaming"


def _head(*, is_ppl: bool) -> tuple[str, ...]:
    measured = (
        ("perplexity", "of StreamingLLM's", "of far tokens")
        if is_ppl
        else ("score", "minus StreamingLLM", "loss of the answer", "minus StreamingLLM")
    )
    sizes = ("mean KiB", "of StreamingLLM's", "of full", "peak KiB", "of full")
    return ("budget", "method", *measured, *sizes)


def _cells(row: Row, *, is_ppl: bool) -> list[str]:
    method = row.method if row.draws == 1 else f"{row.method}, {row.draws} draws"
    cells = [method, with_interval(row.value, row.low, row.high)]
    if is_ppl:
        cells += [ratio(row.against_base), ratio(row.far_against_base)]
    else:
        cells.append(signed(row.against_base))
        loss = row.loss
        told = NOTHING if loss is None else with_interval(loss, row.loss_low, row.loss_high)
        cells += [told, signed(row.loss_against_base)]
    return [
        *cells,
        kib(row.mean_bytes),
        _bytes_of_base(row.mean_of_base),
        share(row.mean_of_full),
        kib(row.peak_bytes),
        share(row.peak_of_full),
    ]


def _bytes_of_base(value: float | None) -> str:
    if value is None:
        return NOTHING
    text = f"× {value:.3f}"
    return text if abs(value - 1) <= EQUAL_BYTES else f"**{text}**"


def _positions(table: TableNumbers) -> str:
    """Perplexity by position, where the records have the same buckets."""
    found = [] if table.full is None else [table.full]
    for rows in table.by_budget.values():
        found += [row for row in rows if row.draws == 1][:_MOST_ROWS]
    edges = {tuple((start, stop) for start, stop, _ in row.by_position) for row in found}
    if len(edges) != 1 or not (buckets := edges.pop()):
        return ""
    head = ["budget", "method", *(f"{int(a):,} to {int(b) - 1:,}" for a, b in buckets)]
    cells = [(row.budget, [row.method, *(number(v) for *_, v in row.by_position)]) for row in found]
    return "Perplexity of tokens:\n\n" + _by_budget(head, cells)


def _by_budget(head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A table that names a budget where it begins."""
    cells = []
    last = None
    for budget, row in rows:
        cells.append([budget_label(budget) if budget != last else "", *row])
        last = budget
    return markdown_table(head, cells, texts=2)


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n</details>\n"


def _plain(text: str) -> str:
    return text.replace("[", "(").replace("]", ")")
