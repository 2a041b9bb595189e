"""The figures of a report, drawn from the runs of its sections."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import final

from lacache.evals.plots.by_bytes import Line, Panel, Point, plot_pareto, plot_scores
from lacache.evals.plots.needle import plot_needle
from lacache.evals.plots.positions import PositionLine, plot_positions
from lacache.evals.report.arrange import Report
from lacache.evals.report.run import BASE, Run, budget_label, split_draws
from lacache.evals.report.tables import Section, Table

MOST_POLICIES = 8
_MOST_PANELS = 12
_MOST_DEPTHS = 12


@final
@dataclass(frozen=True)
class Figure:
    """A PNG that is drawn by calling `draw` with its path."""

    name: str
    caption: str
    draw: Callable[[Path], None]


@final
@dataclass(frozen=True)
class Choice:
    """The policies in a figure by their keys, in a fixed order, and a note on the others."""

    keys: tuple[str, ...]
    note: str


def choose(tables: Sequence[Table], labels: Mapping[str, str], most: int = MOST_POLICIES) -> Choice:
    """Choose all policies, or the best settings of each kind, StreamingLLM first.

    Settings are compared by how far they are above the mean of their table and budget (in nats for
    perplexity), averaged over the tables and budgets that they were run in.
    """
    gains: dict[str, list[float]] = defaultdict(list)
    names: dict[str, str] = {}
    for table in tables:
        for budget in table.budgets:
            worths = {
                run.policy_key: -math.log(run.value) if run.is_ppl else run.value
                for run in split_draws(table.at(budget))[0]
            }
            names |= {run.policy_key: run.policy for run in table.at(budget)}
            for key, worth in worths.items():
                gains[key].append(worth - fmean(worths.values()))
    order = sorted(gains, key=lambda key: (names[key] != BASE, -fmean(gains[key]), labels[key]))
    if len(order) <= most:
        return Choice(tuple(order), "")
    best_of_kind = {names[key]: key for key in reversed(order)}.values()
    chosen = sorted(best_of_kind, key=order.index)[:most]
    return Choice(
        tuple(chosen),
        f"Of each policy only its best settings are drawn, and {len(order) - len(chosen)} others "
        "are in the tables alone.",
    )


def section_figures(number: int, part: Section, report: Report) -> list[Figure]:
    """Return the figures of a section; `number` starts the names of their files."""
    labels, tasks = report.policies, report.tasks
    choice = choose(part.tables, labels)
    if part.setting.kind == "ppl":
        found = [*_positions(part, choice, labels), *_paretos(part, labels)]
    else:
        found = [
            *_means(part, {labels[key] for key in choice.keys}),
            *_scores(part, choice, labels),
            *_needles(part, choice, labels, tasks),
            *_paretos(part, labels),
        ]
    return [Figure(f"{number}-{f.name}", f.caption, f.draw) for f in found]


def _means(part: Section, chosen: set[str]) -> Iterator[Figure]:
    if len(part.tables) < 2:
        return
    rows = [row for row in part.means if row.is_complete]
    points: dict[str, list[Point]] = defaultdict(list)
    for row in rows:
        if row.budget and row.policy in chosen:
            points[row.policy].append(Point(row.mean_bytes, row.mean))
    tables = {row.budget: row.tables for row in rows if row.budget}
    # Budgets over other tables would make a line of points that cannot be compared.
    if not points or len(set(tables.values())) > 1:
        return
    names = {row.policy: row.name for row in rows}
    lines = tuple(Line(names[label], label, tuple(p)) for label, p in points.items())
    full = next((row.mean for row in rows if not row.budget), None)
    panel = Panel(f"mean of {len(part.tables)} tables", lines, full)
    yield Figure(
        "mean.png",
        "Mean score over all tasks and lengths against the mean bytes of the cache.",
        partial(plot_scores, [panel], "Mean score against bytes"),
    )


def _scores(part: Section, choice: Choice, labels: Mapping[str, str]) -> Iterator[Figure]:
    panels = []
    for table in part.tables:
        by_policy: dict[str, list[Run]] = defaultdict(list)
        for run in table.runs:
            by_policy[run.policy_key].append(run)
        lines = tuple(
            Line(
                by_policy[key][0].policy,
                labels[key],
                tuple(Point(r.mean_bytes, r.value, *r.interval) for r in by_policy[key]),
            )
            for key in choice.keys
            if key in by_policy
        )
        if lines:
            panels.append(Panel(table.label, lines, _full_value(table)))
    for page, start in enumerate(range(0, len(panels), _MOST_PANELS), start=1):
        several = f" ({page})" if len(panels) > _MOST_PANELS else ""
        shown = panels[start : start + _MOST_PANELS]
        yield Figure(
            f"scores-{page}.png",
            f"Score against mean bytes{several}, with 95 % intervals. {choice.note}".strip(),
            partial(plot_scores, shown, f"Score against bytes{several}"),
        )


def _needles(
    part: Section, choice: Choice, labels: Mapping[str, str], tasks: Mapping[str, str]
) -> Iterator[Figure]:
    by_task: dict[str, list[Table]] = defaultdict(list)
    for table in part.tables:
        by_task[table.cell.task].append(table)
    for task, tables in by_task.items():
        full = [table.full for table in tables if table.full is not None]
        for budget in dict.fromkeys(budget for table in tables for budget in table.budgets):
            shown = {"Full cache": full} if full else {}
            at_budget = [run for table in tables for run in table.at(budget)]
            for key in choice.keys:
                if runs := [run for run in at_budget if run.policy_key == key]:
                    shown[labels[key]] = runs
            panels = {label: _by_depth(runs) for label, runs in shown.items()}
            depths = {depth for scores in panels.values() for depth, _ in scores}
            if len(depths) < 2 or not all(panels.values()):
                continue
            title = f"Score by depth and length: {tasks[task]}, budget {budget_label(budget)}"
            yield Figure(
                f"depth-{_slug(tasks[task])}-{_slug(budget)}.png",
                f"{title}. {choice.note}".strip(),
                partial(plot_needle, panels, title),
            )


def _by_depth(runs: Sequence[Run]) -> dict[tuple[float, int], float]:
    """Return mean scores by (depth, length); nothing unless every sample records its depth."""
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


def _positions(part: Section, choice: Choice, labels: Mapping[str, str]) -> Iterator[Figure]:
    for table in part.tables:
        for budget in table.budgets or [""]:
            runs = {run.policy_key: run for run in table.at(budget)}
            shown = [runs[key] for key in choice.keys if key in runs]
            if table.full is not None:
                shown.insert(0, table.full)
            if not shown:
                # The choice has none of this table's policies.
                continue
            lines = [
                PositionLine(
                    run.policy,
                    f"{labels[run.policy_key]} ({run.value:,.2f} over all)",
                    tuple(run.losses),
                )
                for run in shown
            ]
            title = f"{table.label}, budget {budget_label(budget)}" if budget else table.label
            trained_context = shown[0].record["model"].get("trained_context")
            yield Figure(
                f"positions-{_slug(table.label)}-{_slug(budget)}.png",
                f"Perplexity by position: {title}. {choice.note}".strip(),
                partial(plot_positions, lines, title, trained_context=trained_context),
            )


def _paretos(part: Section, labels: Mapping[str, str]) -> Iterator[Figure]:
    """Draw perplexity always, and scores where there are random draws, as lines show the rest."""
    is_ppl = part.setting.kind == "ppl"
    for table in part.tables:
        clouds: dict[tuple[str, str], list[Point]] = defaultdict(list)
        points: dict[str, list[Point]] = defaultdict(list)
        names = {run.policy_key: run.policy for run in table.runs}
        for budget in table.budgets:
            alone, drawn = split_draws(table.at(budget))
            for label, runs in drawn.items():
                cloud = clouds[runs[0].policy, label]
                cloud += [Point(run.mean_bytes, run.value) for run in runs]
            for run in alone:
                points[run.policy_key].append(Point(run.mean_bytes, run.value))
        if not clouds and (not is_ppl or sum(map(len, points.values())) < 2):
            continue
        choice = choose([table], labels)
        yield Figure(
            f"pareto-{_slug(table.label)}.png",
            f"Values by mean bytes: {table.label}. {choice.note}".strip(),
            partial(
                plot_pareto,
                [Line(names[key], labels[key], tuple(points[key])) for key in choice.keys],
                [Line(name, label, tuple(cloud)) for (name, label), cloud in clouds.items()],
                table.label,
                lower_is_better=is_ppl,
                full=_full_value(table),
            ),
        )


def _full_value(table: Table) -> float | None:
    return None if table.full is None else table.full.value


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-") or "all"
