"""Every number of a report, worked out once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

from lacache.common.records import Record
from lacache.evals.report.means import MeanRow, mean_rows
from lacache.evals.report.pool import pool_seeds
from lacache.evals.report.rows import Row, full_row, rows_at, split_draws
from lacache.evals.report.run import Run, method_labels, task_labels
from lacache.evals.report.sections import (
    Section,
    Table,
    apart,
    arrange,
    of_newest_harness,
    without_repeats,
)


@final
@dataclass(frozen=True)
class TableNumbers:
    """The rows of one table."""

    table: Table
    label: str
    full: Row | None
    by_budget: Mapping[str, Sequence[Row]]
    """From the smallest budget on; rows from the best on."""

    @property
    def is_ppl(self) -> bool:
        """Whether values are perplexities."""
        runs = [*self.table.runs, *([self.table.full] if self.table.full else [])]
        return runs[0].is_ppl

    def draws(self, budget: str) -> dict[str, list[Run]]:
        """Draws by chance, by their label."""
        return split_draws([run for run in self.table.runs if run.budget == budget])[1]


@final
@dataclass(frozen=True)
class SectionNumbers:
    """The tables of one setting and the means over them."""

    section: Section
    tables: Sequence[TableNumbers]
    means: Sequence[MeanRow]


@final
@dataclass(frozen=True)
class Numbers:
    """All of a report."""

    runs: Sequence[Run]
    """Without repeats, and not pooled."""
    sections: Sequence[SectionNumbers]
    notes: Sequence[str]
    """On what stands apart or was left out."""
    methods: Mapping[str, str]
    """Short names by `Run.method_key`."""
    tasks: Mapping[str, str]
    """Short names by `Cell.task`."""


def work_out(runs: Sequence[Run]) -> Numbers:
    """Sort runs into tables and compare them.

    Raises:
        InputError: runs of the same samples that cannot be paired.
    """
    newest, old = of_newest_harness(runs)
    kept, repeats = without_repeats(newest)
    pooled = pool_seeds(kept)
    sections = arrange(pooled)
    methods, tasks = method_labels(kept), task_labels(kept)
    return Numbers(
        runs=kept,
        sections=[_section(section, methods, tasks) for section in sections],
        notes=[*old, *repeats, *apart(sections, tasks)],
        methods=methods,
        tasks=tasks,
    )


def table_label(table: Table, tasks: Mapping[str, str], tables: Sequence[Table]) -> str:
    """Task and length, and what else tells a table from the others."""
    cell = table.cell
    label = f"{tasks[cell.task]}, {cell.length:,} tokens"
    alike = [t.cell for t in tables if (t.cell.task, t.cell.length) == (cell.task, cell.length)]
    if len({other.seeds for other in alike}) > 1:
        label += f", {cell.seeds_label}"
    if sum(other.seeds == cell.seeds for other in alike) > 1:
        label += f", samples {cell.samples[:8]}"
    return label


def as_record(numbers: Numbers) -> Record:
    """The numbers as plain JSON; an end of an interval that is infinite is null."""
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
        setting = {"label": part.section.setting.label, **asdict(part.section.setting)}
        sections.append({"setting": setting, "means": means, "tables": tables})
    record: Record = _finite({"sections": sections, "notes": list(numbers.notes)})
    return record


def _section(
    section: Section, methods: Mapping[str, str], tasks: Mapping[str, str]
) -> SectionNumbers:
    tables = [
        TableNumbers(
            table=table,
            label=table_label(table, tasks, section.tables),
            full=full_row(table, methods),
            by_budget={budget: rows_at(table, budget, methods) for budget in table.budgets},
        )
        for table in section.tables
    ]
    return SectionNumbers(section, tables, mean_rows(section, methods))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
