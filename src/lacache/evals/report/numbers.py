"""All numbers of a report, computed once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

from lacache.common.records import Record
from lacache.evals.report.rows import MeanRow, Row, full_row, mean_rows, rows_at, split_draws
from lacache.evals.report.run import Run, policy_labels, task_labels
from lacache.evals.report.tables import (
    Section,
    Table,
    arrange,
    pool_seeds,
    select_newest_harness,
    select_newest_repeats,
    separation_notes,
)


@final
@dataclass(frozen=True)
class TableNumbers:
    """The rows of one table."""

    table: Table
    label: str
    full: Row | None
    by_budget: Mapping[str, Sequence[Row]]
    """Rows from the best on, by budget from the smallest on."""

    @property
    def is_ppl(self) -> bool:
        """Whether the values are perplexities."""
        return self.table.all_runs[0].is_ppl

    def draws(self, budget: str) -> dict[str, list[Run]]:
        """Return the random draws of a budget by label."""
        return split_draws(self.table.at(budget))[1]


@final
@dataclass(frozen=True)
class SectionNumbers:
    """The tables of one setting, and the means over them."""

    section: Section
    tables: Sequence[TableNumbers]
    means: Sequence[MeanRow]

    @property
    def label(self) -> str:
        """The heading of the section on the page."""
        return self.section.setting.label


@final
@dataclass(frozen=True)
class Numbers:
    """The numbers of a whole report."""

    runs: Sequence[Run]
    """Runs without repeats, not pooled."""
    sections: Sequence[SectionNumbers]
    notes: Sequence[str]
    """Notes on what is shown apart or was left out."""
    policies: Mapping[str, str]
    """Labels by `Run.policy_key`."""
    tasks: Mapping[str, str]
    """Labels by `Cell.task`."""


def compute(runs: Sequence[Run]) -> Numbers:
    """Sort runs into tables and compare them.

    Raises:
        InputError: runs of the same samples cannot be paired.
    """
    newest, old = select_newest_harness(runs)
    kept, repeats = select_newest_repeats(newest)
    sections = arrange(pool_seeds(kept))
    policies, tasks = policy_labels(kept), task_labels(kept)
    return Numbers(
        runs=kept,
        sections=[_section(section, policies, tasks) for section in sections],
        notes=[*old, *repeats, *separation_notes(sections, tasks)],
        policies=policies,
        tasks=tasks,
    )


def as_record(numbers: Numbers) -> Record:
    """Return the numbers as plain JSON; an infinite end of an interval is null."""
    sections: list[Record] = []
    for part in numbers.sections:
        tables = [
            {
                "label": table.label,
                **asdict(table.table.cell),
                "full": None if table.full is None else asdict(table.full),
                "rows": [asdict(row) for rows in table.by_budget.values() for row in rows],
            }
            for table in part.tables
        ]
        means = [asdict(row) for row in part.means]
        setting = {"label": part.label, **asdict(part.section.setting)}
        sections.append({"setting": setting, "means": means, "tables": tables})
    record: Record = _finite({"sections": sections, "notes": list(numbers.notes)})
    return record


def _section(
    section: Section, policies: Mapping[str, str], tasks: Mapping[str, str]
) -> SectionNumbers:
    tables = [
        TableNumbers(
            table=table,
            label=_table_label(table, tasks, section.tables),
            full=full_row(table, policies),
            by_budget={budget: rows_at(table, budget, policies) for budget in table.budgets},
        )
        for table in section.tables
    ]
    return SectionNumbers(section, tables, mean_rows(section, policies))


def _table_label(table: Table, tasks: Mapping[str, str], tables: Sequence[Table]) -> str:
    """Return task and length, and what else distinguishes a table from the others."""
    cell = table.cell
    label = f"{tasks[cell.task]}, {cell.length:,} tokens"
    alike = [t.cell for t in tables if (t.cell.task, t.cell.length) == (cell.task, cell.length)]
    if len({other.seeds for other in alike}) > 1:
        label += f", {cell.seeds_label}"
    if sum(other.seeds == cell.seeds for other in alike) > 1:
        label += f", samples {cell.samples[:8]}"
    return label


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
