"""Methods over all tasks of a section, at equal budgets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import final

from lacache.evals.report.paired import Estimate, ratio_of_means
from lacache.evals.report.rows import split_draws
from lacache.evals.report.run import FULL, Run
from lacache.evals.report.sections import Section, Table


@final
@dataclass(frozen=True)
class MeanRow:
    """A method at one budget, over the tables (task, length, seed) of a section."""

    name: str
    """The harness's name of the method."""
    method: str
    budget: str
    tables: int
    """Tables that the method was run in at this budget."""
    tables_in_all: int
    """Tables in which any method was run at this budget."""
    mean: float
    """Score over the tables that it was run in: comparable where these are all."""
    signal_tables: int
    """Of its tables those where the full cache shows signal."""
    signal_mean: float | None
    paired_tables: int
    """Tables with signal in which StreamingLLM was run at the same budget too."""
    against_base: Estimate | None
    """Ratio of the means over these, with the interval of a bootstrap of the samples; None without
    such tables, for StreamingLLM itself, or where its mean is 0."""
    mean_of_base: float | None
    """Ratio of the mean bytes over the same tables, averaged."""
    mean_bytes: float
    """Averaged over the tables that it was run in."""

    @property
    def is_complete(self) -> bool:
        """Whether the mean is over all tables of the budget."""
        return self.tables == self.tables_in_all


def mean_rows(section: Section, labels: Mapping[str, str]) -> list[MeanRow]:
    """The full cache first, then by budget the best first; draws by chance are left out."""
    if section.setting.kind == "ppl":
        return []
    by_method: dict[tuple[str, str], list[tuple[Table, Run]]] = defaultdict(list)
    in_all: dict[str, set[int]] = defaultdict(set)
    capacities: dict[str, float] = {}
    for number, table in enumerate(section.tables):
        found = [] if table.full is None else [table.full]
        for budget in table.budgets:
            found += split_draws([run for run in table.runs if run.budget == budget])[0]
        for run in found:
            by_method[run.budget, run.method_key].append((table, run))
            in_all[run.budget].add(number)
            if run.budget:
                capacity = float(run.record["capacity"] or 0)
                capacities[run.budget] = max(capacity, capacities.get(run.budget, 0.0))
    in_all[""] = set(range(len(section.tables)))
    order = ["", *sorted(capacities, key=lambda budget: (capacities[budget], budget))]
    rows = [
        _mean_row(labels[key], budget, found, len(in_all[budget]))
        for (budget, key), found in by_method.items()
    ]
    return sorted(rows, key=lambda row: (order.index(row.budget), not row.is_complete, -row.mean))


def _mean_row(
    label: str, budget: str, found: list[tuple[Table, Run]], tables_in_all: int
) -> MeanRow:
    signal = [(t, run) for t, run in found if t.full is not None and t.full.has_signal]
    pairs = [
        (run, base)
        for table, run in signal
        if run.method != FULL and (base := table.base(run)) is not None
    ]
    return MeanRow(
        name=found[0][1].method,
        method=label,
        budget=budget,
        tables=len(found),
        tables_in_all=tables_in_all,
        mean=fmean(run.value for _, run in found),
        signal_tables=len(signal),
        signal_mean=fmean(run.value for _, run in signal) if signal else None,
        paired_tables=len(pairs),
        against_base=ratio_of_means([(a.scores, b.scores) for a, b in pairs]) if pairs else None,
        mean_of_base=(
            fmean(run.mean_bytes / base.mean_bytes for run, base in pairs) if pairs else None
        ),
        mean_bytes=fmean(run.mean_bytes for _, run in found),
    )
