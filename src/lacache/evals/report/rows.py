"""The numbers of tables: rows of runs, of random draws, and of means over tables."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, quantiles
from typing import final

from lacache.evals.bootstrap import BLOCK
from lacache.evals.report.paired import (
    UNKNOWN,
    Estimate,
    mean_difference,
    perplexity_ratio,
    ratio_of_means,
)
from lacache.evals.report.run import FULL, Run
from lacache.evals.report.tables import Section, Table

FEWEST_FAR = 50
"""Least number of far tokens for their perplexity to be shown."""
FEWEST_DRAWS = 4
"""Least number of runs, alike but for the seed of their policy, that make one row."""


@final
@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table. What is unknown or has no meaning is None."""

    name: str
    """The harness's name of the policy."""
    policy: str
    """The label of the policy."""
    budget: str
    draws: int = 1
    """Number of runs in this row, more than one for a policy that draws at random. The value is
    then their median with the interval of 95 % of them, and bytes are means."""
    value: float
    low: float
    high: float
    """Infinite for a single sample."""
    against_base: Estimate | None = None
    """Score minus StreamingLLM's, or perplexity over StreamingLLM's, on the same samples."""
    far_against_base: Estimate | None = None
    """Perplexity over StreamingLLM's of far tokens, which occurred last more than the capacity
    before; None for scores and for few tokens."""
    loss: float | None = None
    """Nats of the right answer; None for perplexity."""
    loss_low: float | None = None
    loss_high: float | None = None
    loss_against_base: Estimate | None = None
    mean_bytes: float
    peak_bytes: float
    mean_of_base: float | None
    """Mean bytes over those of StreamingLLM at the same budget: 1 is a fair comparison."""
    mean_of_full: float | None
    """Mean bytes over those of the full cache on the same samples."""
    peak_of_full: float
    """Peak bytes over those of a full cache at the end."""
    by_position: tuple[tuple[float, ...], ...] = ()
    """Perplexities as (first token, last token + 1, perplexity); empty for draws and scores."""


def full_row(table: Table, labels: Mapping[str, str]) -> Row | None:
    """Return the row of the full cache."""
    return None if table.full is None else _run_row(table, table.full, labels)


def rows_at(table: Table, budget: str, labels: Mapping[str, str]) -> list[Row]:
    """Return the rows of one budget, the best first."""
    alone, drawn = split_draws(table.at(budget))
    rows = [_run_row(table, run, labels) for run in alone]
    rows += [_draws_row(table, runs, label) for label, runs in drawn.items()]
    is_ppl = any(run.is_ppl for run in table.runs)
    return sorted(rows, key=lambda row: row.value if is_ppl else -row.value)


def split_draws(runs: Sequence[Run]) -> tuple[list[Run], dict[str, list[Run]]]:
    """Split single runs from random draws, which differ only by the seed of their policy.

    Returns:
        The single runs, and the draws by label.
    """
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        settings = {k: v for k, v in run.record["policy"].items() if k != "seed"}
        groups[json.dumps(settings, sort_keys=True)].append(run)
    alone: list[Run] = []
    drawn: dict[str, list[Run]] = {}
    for same in groups.values():
        if len(same) < FEWEST_DRAWS:
            alone += same
            continue
        name = label = same[0].policy
        number = 2
        while label in drawn:
            label, number = f"{name} {number}", number + 1
        drawn[label] = same
    return alone, drawn


def _run_row(table: Table, run: Run, labels: Mapping[str, str]) -> Row:
    base = table.base(run)
    against = far_against = loss_against = None
    if base is not None and run.is_ppl:
        against = perplexity_ratio(run.losses, base.losses)
        far, far_of_base = (r.far_losses(run.record["capacity"]) for r in (run, base))
        if min(len(far), len(far_of_base)) >= FEWEST_FAR:
            # Few of the tokens in a row are far ones.
            block = max(1, BLOCK * len(far) // len(run.losses))
            far_against = perplexity_ratio(far, far_of_base, block)
    elif base is not None:
        against = mean_difference(run.scores, base.scores)
        loss_against = mean_difference(run.losses, base.losses)
    low, high = run.interval
    loss = None if run.is_ppl else float(run.record["nll"])
    loss_low, loss_high = (None, None) if run.is_ppl else run.record["nll_interval"]
    if len(run.losses) == 1:
        low, high = UNKNOWN
        loss_low = loss_high = None
    return Row(
        name=run.policy,
        policy=labels[run.policy_key],
        budget=run.budget,
        value=run.value,
        low=low,
        high=high,
        against_base=against,
        far_against_base=far_against,
        loss=loss,
        loss_low=loss_low,
        loss_high=loss_high,
        loss_against_base=loss_against,
        mean_bytes=run.mean_bytes,
        peak_bytes=run.peak_bytes,
        mean_of_base=None if base is None else run.mean_bytes / base.mean_bytes,
        mean_of_full=None if table.full is None else run.mean_bytes / table.full.mean_bytes,
        peak_of_full=run.peak_bytes / run.full_bytes,
        by_position=tuple(tuple(bucket) for bucket in run.record.get("by_position", ())),
    )


def _draws_row(table: Table, runs: Sequence[Run], label: str) -> Row:
    values = [run.value for run in runs]
    cuts = quantiles(values, n=40, method="inclusive")
    mean_bytes = fmean(run.mean_bytes for run in runs)
    peak_bytes = max(run.peak_bytes for run in runs)
    base = table.base(runs[0])
    return Row(
        name=runs[0].policy,
        policy=label,
        budget=runs[0].budget,
        draws=len(runs),
        value=median(values),
        low=cuts[0],
        high=cuts[-1],
        loss=None if runs[0].is_ppl else median(float(run.record["nll"]) for run in runs),
        mean_bytes=mean_bytes,
        peak_bytes=peak_bytes,
        mean_of_base=None if base is None else mean_bytes / base.mean_bytes,
        mean_of_full=None if table.full is None else mean_bytes / table.full.mean_bytes,
        peak_of_full=peak_bytes / runs[0].full_bytes,
    )


@final
@dataclass(frozen=True)
class MeanRow:
    """A policy at one budget, over the tables (task, length, seeds) of a section."""

    name: str
    """The harness's name of the policy."""
    policy: str
    """The label of the policy."""
    budget: str
    tables: int
    """Number of tables with this policy at this budget."""
    tables_in_all: int
    """Number of tables with any policy at this budget."""
    mean: float
    """Mean score over `tables`; comparable where these are all."""
    signal_tables: int
    """Number of these tables in which the full cache shows signal."""
    signal_mean: float | None
    paired_tables: int
    """Number of tables with signal and with StreamingLLM at the same budget."""
    against_base: Estimate | None
    """Ratio of the means over the paired tables; None without such tables, for StreamingLLM
    itself, or where its mean is 0."""
    mean_of_base: float | None
    """Ratio of the mean bytes over the paired tables, averaged."""
    mean_bytes: float
    """Mean bytes over `tables`."""

    @property
    def is_complete(self) -> bool:
        """Whether the mean is over all tables of the budget."""
        return self.tables == self.tables_in_all


def mean_rows(section: Section, labels: Mapping[str, str]) -> list[MeanRow]:
    """Return the full cache, then by budget the best first; random draws are left out."""
    if section.setting.kind == "ppl":
        return []
    by_policy: dict[tuple[str, str], list[tuple[Table, Run]]] = defaultdict(list)
    in_all: dict[str, set[int]] = defaultdict(set)
    capacities: dict[str, float] = {}
    for number, table in enumerate(section.tables):
        found = [] if table.full is None else [table.full]
        for budget in table.budgets:
            found += split_draws(table.at(budget))[0]
        for run in found:
            by_policy[run.budget, run.policy_key].append((table, run))
            in_all[run.budget].add(number)
            if run.budget:
                capacity = float(run.record["capacity"] or 0)
                capacities[run.budget] = max(capacity, capacities.get(run.budget, 0.0))
    in_all[""] = set(range(len(section.tables)))
    order = ["", *sorted(capacities, key=lambda budget: (capacities[budget], budget))]
    rows = [
        _mean_row(labels[key], budget, found, len(in_all[budget]))
        for (budget, key), found in by_policy.items()
    ]
    return sorted(rows, key=lambda row: (order.index(row.budget), not row.is_complete, -row.mean))


def _mean_row(
    label: str, budget: str, found: list[tuple[Table, Run]], tables_in_all: int
) -> MeanRow:
    signal = [(t, run) for t, run in found if t.full is not None and t.full.has_signal]
    pairs = [
        (run, base)
        for table, run in signal
        if run.policy != FULL and (base := table.base(run)) is not None
    ]
    return MeanRow(
        name=found[0][1].policy,
        policy=label,
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
