"""The pictures of a report, drawn from the runs of its sections."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import final

from lacache.evals.plots.needle import NeedlePanel, plot_needle
from lacache.evals.plots.pareto import ParetoLine, ParetoPoint, plot_pareto
from lacache.evals.plots.positions import PositionLine, plot_positions
from lacache.evals.plots.score_by_bytes import (
    ScoreLine,
    ScorePanel,
    ScorePoint,
    plot_score_by_bytes,
)
from lacache.evals.report.choice import Choice, choose
from lacache.evals.report.means import mean_rows
from lacache.evals.report.numbers import table_label
from lacache.evals.report.rows import split_draws
from lacache.evals.report.run import Run, budget_label
from lacache.evals.report.sections import Section, Table

_PANELS = 12
_MOST_DEPTHS = 12


@final
@dataclass(frozen=True)
class Picture:
    """One PNG, to be drawn by calling `draw` with its path."""

    name: str
    caption: str
    draw: Callable[[Path], None]


def pictures(
    number: int, section: Section, labels: Mapping[str, str], tasks: Mapping[str, str]
) -> list[Picture]:
    """What there is to see in a section; `number` starts the names of its files."""
    choice = choose(section.tables, labels)
    if section.setting.kind == "ppl":
        found = [*_positions(section, choice, labels, tasks), *_paretos(section, labels, tasks)]
    else:
        found = [
            *_means(section, labels),
            *_scores(section, choice, labels, tasks),
            *_needles(section, choice, labels, tasks),
            *_paretos(section, labels, tasks),
        ]
    return [Picture(f"{number}-{p.name}", p.caption, p.draw) for p in found]


def _means(section: Section, labels: Mapping[str, str]) -> Iterator[Picture]:
    if len(section.tables) < 2:
        return
    choice = {labels[key] for key in choose(section.tables, labels).keys}
    rows = [row for row in mean_rows(section, labels) if row.is_complete]
    by_label: dict[str, list[ScorePoint]] = defaultdict(list)
    names = {row.method: row.name for row in rows}
    tables = dict.fromkeys({row.budget for row in rows}, 0)
    for row in rows:
        tables[row.budget] = row.tables
        if row.budget and row.method in choice:
            by_label[row.method].append(ScorePoint(row.mean_bytes, row.mean))
    # Budgets over other tables would make a line of points that cannot be compared.
    if not by_label or len({count for budget, count in tables.items() if budget}) > 1:
        return
    lines = tuple(ScoreLine(names[label], label, tuple(p)) for label, p in by_label.items())
    full = next((row.mean for row in rows if not row.budget), None)
    panel = ScorePanel(f"mean of {len(section.tables)} tables", lines, full)
    yield Picture(
        "mean.png",
        "Mean score over all tasks and lengths against the mean bytes of the cache.",
        lambda path: plot_score_by_bytes([panel], "Mean score against bytes", path),
    )


def _scores(
    section: Section, choice: Choice, labels: Mapping[str, str], tasks: Mapping[str, str]
) -> Iterator[Picture]:
    panels = []
    for table in section.tables:
        by_method: dict[str, list[Run]] = defaultdict(list)
        for run in table.runs:
            if run.method_key in choice.keys:
                by_method[run.method_key].append(run)
        lines = tuple(
            ScoreLine(
                by_method[key][0].method,
                labels[key],
                tuple(ScorePoint(r.mean_bytes, r.value, *r.interval) for r in by_method[key]),
            )
            for key in choice.keys
            if key in by_method
        )
        if lines:
            full = None if table.full is None else table.full.value
            panels.append(ScorePanel(table_label(table, tasks, section.tables), lines, full))
    for part, start in enumerate(range(0, len(panels), _PANELS), start=1):
        several = f" ({part})" if len(panels) > _PANELS else ""
        shown = panels[start : start + _PANELS]
        yield Picture(
            f"scores-{part}.png",
            f"Score against mean bytes{several}, with 95 % intervals. {choice.note}".strip(),
            _call_scores(shown, f"Score against bytes{several}"),
        )


def _call_scores(panels: Sequence[ScorePanel], title: str) -> Callable[[Path], None]:
    return lambda path: plot_score_by_bytes(panels, title, path)


def _needles(
    section: Section, choice: Choice, labels: Mapping[str, str], tasks: Mapping[str, str]
) -> Iterator[Picture]:
    by_task: dict[str, list[Table]] = defaultdict(list)
    for table in section.tables:
        by_task[table.cell.task].append(table)
    for task, tables in by_task.items():
        budgets = dict.fromkeys(budget for table in tables for budget in table.budgets)
        full = [table.full for table in tables if table.full is not None]
        for budget in budgets:
            chosen = [("Full cache", full)] if full else []
            for key in choice.keys:
                runs = [
                    run
                    for table in tables
                    for run in table.runs
                    if run.budget == budget and run.method_key == key
                ]
                if runs:
                    chosen.append((labels[key], runs))
            panels = [NeedlePanel(label, _by_depth(runs)) for label, runs in chosen]
            depths = {depth for panel in panels for depth, _ in panel.scores}
            if len(depths) < 2 or not all(panel.scores for panel in panels):
                continue
            about = f"{tasks[task]}, budget {budget_label(budget)}"
            yield Picture(
                f"depth-{_slug(tasks[task])}-{_slug(budget)}.png",
                f"Score by depth and length: {about}. {choice.note}".strip(),
                _call_needle(panels, f"Score by depth and length: {about}"),
            )


def _call_needle(panels: Sequence[NeedlePanel], title: str) -> Callable[[Path], None]:
    return lambda path: plot_needle(panels, title, path)


def _by_depth(runs: Sequence[Run]) -> dict[tuple[float, int], float]:
    """Mean scores by (depth, length); nothing unless every sample records its depth."""
    found: dict[tuple[float, int], list[float]] = defaultdict(list)
    samples = [(s, run.cell.length) for run in runs for s in run.record["samples"]]
    depths = [sample.get("info", {}).get("depth") for sample, _ in samples]
    if any(isinstance(depth, bool) or not isinstance(depth, (int, float)) for depth in depths):
        return {}
    many = len(set(depths)) > _MOST_DEPTHS
    digits = (1 if max(depths, default=0) <= 1 else -1) if many else 4
    for (sample, length), depth in zip(samples, depths, strict=True):
        found[float(round(depth, digits)), length].append(sample["score"])
    return {place: fmean(scores) for place, scores in found.items()}


def _positions(
    section: Section, choice: Choice, labels: Mapping[str, str], tasks: Mapping[str, str]
) -> Iterator[Picture]:
    for table in section.tables:
        about = table_label(table, tasks, section.tables)
        for budget in table.budgets or [""]:
            runs = {run.method_key: run for run in table.runs if run.budget == budget}
            shown = [runs[key] for key in choice.keys if key in runs]
            if table.full is not None:
                shown.insert(0, table.full)
            if not shown:
                # All of this table's methods were left out of the pictures.
                continue
            lines = [
                PositionLine(
                    run.method,
                    f"{labels[run.method_key]} ({run.value:,.2f} over all)",
                    tuple(run.losses),
                )
                for run in shown
            ]
            title = f"{about}, budget {budget_label(budget)}" if budget else about
            yield Picture(
                f"positions-{_slug(about)}-{_slug(budget)}.png",
                f"Perplexity by position: {title}. {choice.note}".strip(),
                _call_positions(lines, title, shown[0].record["model"].get("trained_context")),
            )


def _call_positions(
    lines: Sequence[PositionLine], title: str, trained_context: int | None
) -> Callable[[Path], None]:
    return lambda path: plot_positions(lines, title, path, trained_context=trained_context)


def _paretos(
    section: Section, labels: Mapping[str, str], tasks: Mapping[str, str]
) -> Iterator[Picture]:
    """For perplexity always; for scores where there are draws by chance, as lines show the rest."""
    is_ppl = section.setting.kind == "ppl"
    for table in section.tables:
        clouds: dict[str, list[ParetoPoint]] = defaultdict(list)
        drawn_names: dict[str, str] = {}
        points: dict[str, list[ParetoPoint]] = defaultdict(list)
        names: dict[str, str] = {}
        for budget in table.budgets:
            alone, drawn = split_draws([run for run in table.runs if run.budget == budget])
            for label, runs in drawn.items():
                drawn_names[label] = runs[0].method
                clouds[label] += [ParetoPoint(run.mean_bytes, run.value) for run in runs]
            for run in alone:
                points[run.method_key].append(ParetoPoint(run.mean_bytes, run.value))
                names[run.method_key] = run.method
        if not clouds and (not is_ppl or sum(map(len, points.values())) < 2):
            continue
        choice = choose([table], labels)
        about = table_label(table, tasks, section.tables)
        lines = [ParetoLine(names[key], labels[key], tuple(points[key])) for key in choice.keys]
        grey = [ParetoLine(drawn_names[k], k, tuple(p)) for k, p in clouds.items()]
        yield Picture(
            f"pareto-{_slug(about)}.png",
            f"Values by mean bytes: {about}. {choice.note}".strip(),
            _call_pareto(lines, grey, about, table, is_ppl=is_ppl),
        )


def _call_pareto(
    lines: Sequence[ParetoLine],
    clouds: Sequence[ParetoLine],
    title: str,
    table: Table,
    *,
    is_ppl: bool,
) -> Callable[[Path], None]:
    return lambda path: plot_pareto(
        lines,
        clouds,
        title,
        path,
        measure="perplexity" if is_ppl else "score",
        lower_is_better=is_ppl,
        full=None if table.full is None else table.full.value,
    )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-") or "all"
