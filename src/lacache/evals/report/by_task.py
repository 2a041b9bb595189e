"""Scores of all tasks side by side: a row for each policy, a column for each task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import final

from lacache.evals.intervals import Estimate, mean_of_means, ratio_of_means
from lacache.evals.report.run import Cell, Run, budget_order, split_draws
from lacache.evals.report.tables import Section, Table

_RULER = "ruler-"


@final
@dataclass(frozen=True)
class TaskRow:
    """A policy at one budget."""

    policy: str
    """The label of the policy."""
    budget: str
    values: tuple[float | None, ...]
    """Scores by column; None where the policy was not run."""
    mean: Estimate | None
    """Over the tasks of `TaskTable.mean_of`; None unless the policy was run in all."""
    against_base: Estimate | None
    """Ratio of that mean to StreamingLLM's at the same budget."""
    against_full: Estimate | None
    """Ratio of that mean to the full cache's."""


@final
@dataclass(frozen=True)
class TaskTable:
    """Tasks of one length, or tasks that have several lengths."""

    title: str
    columns: tuple[str, ...]
    mean_of: str
    """What the mean is over, in words."""
    rows: tuple[TaskRow, ...]


def by_task(part: Section, tasks: Mapping[str, str]) -> list[TaskTable]:
    """Return a table for each length with several tasks, and one of the tasks at several lengths.

    Args:
        part: a section; perplexities are in other tables.
        tasks: labels by `Cell.task`.
    """
    if part.setting.kind == "ppl":
        return []
    by_length: dict[int, list[Table]] = defaultdict(list)
    lengths: dict[str, list[Table]] = defaultdict(list)
    for table in part.tables:
        by_length[table.cell.length].append(table)
        lengths[table.cell.task].append(table)
    found = [
        _task_table(
            f"Scores at {length:,} tokens", tables, [tasks[table.cell.task] for table in tables]
        )
        for length, tables in sorted(by_length.items())
        if len(tables) > 1
    ]
    longer = [
        t for same in lengths.values() if len({x.cell.length for x in same}) > 1 for t in same
    ]
    if longer:
        heads = [f"{tasks[table.cell.task]}, {table.cell.length:,}" for table in longer]
        found.append(_task_table("Scores by length", longer, heads))
    return found


def _task_table(title: str, tables: Sequence[Table], columns: Sequence[str]) -> TaskTable:
    ruler = {t.cell.task for t in tables if _is_ruler(t)}
    # One task of RULER, at one length or several, is no mean of RULER.
    over = [t for t in tables if _is_ruler(t)] if len(ruler) > 1 else list(tables)
    found: dict[tuple[str, str], dict[Cell, Run]] = defaultdict(dict)
    order: dict[str, tuple[float, str]] = {}
    for table in tables:
        runs = [] if table.full is None else [table.full]
        for budget in table.budgets:
            runs += split_draws(table.at(budget))[0]
        for run in runs:
            found[run.budget, table.policies[run.policy_key]][table.cell] = run
            order[run.budget] = max(budget_order(run), order.get(run.budget, (0.0, "")))
    rows = [
        _task_row(policy, budget, by_cell, tables, over)
        for (budget, policy), by_cell in found.items()
    ]

    def rank(row: TaskRow) -> tuple[object, ...]:
        known = [value for value in row.values if value is not None]
        worth = row.mean.value if row.mean is not None else fmean(known)
        return (order[row.budget], row.mean is None, -worth, row.policy)

    mean_of = f"{len(over)} RULER tasks" if len(ruler) > 1 else f"{len(over)} columns"
    return TaskTable(title, tuple(columns), mean_of, tuple(sorted(rows, key=rank)))


def _is_ruler(table: Table) -> bool:
    return str(table.all_runs[0].record["task"]["name"]).startswith(_RULER)


def _task_row(
    policy: str,
    budget: str,
    by_cell: Mapping[Cell, Run],
    tables: Sequence[Table],
    over: Sequence[Table],
) -> TaskRow:
    runs = [by_cell.get(table.cell) for table in tables]
    values = tuple(None if run is None else run.value for run in runs)
    measured = [(table, run) for table in over if (run := by_cell.get(table.cell)) is not None]
    if len(measured) < len(over):
        return TaskRow(policy, budget, values, None, None, None)
    bases = [(run, table.base(run)) for table, run in measured]
    fulls = [(run, None if run is table.full else table.full) for table, run in measured]
    mean = mean_of_means([run.scores for _, run in measured])
    return TaskRow(policy, budget, values, mean, _ratio(bases), _ratio(fulls))


def _ratio(pairs: Sequence[tuple[Run, Run | None]]) -> Estimate | None:
    """Return the ratio of two means over tables, if both were run in all of them."""
    scores = [(ours.scores, theirs.scores) for ours, theirs in pairs if theirs is not None]
    return ratio_of_means(scores) if len(scores) == len(pairs) else None
