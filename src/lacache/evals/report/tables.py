"""Tables of runs on the same samples, sections of tables, and the numbers in their rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median, quantiles
from typing import final

from lacache.evals.intervals import (
    BLOCK,
    UNKNOWN,
    Estimate,
    mean_difference,
    perplexity_ratio,
    ratio_of_means,
)
from lacache.evals.report.run import BASE, FULL, Cell, Run, Setting, agreement, split_draws

FEWEST_FAR = 50
"""Least number of far tokens for their perplexity to be shown."""


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


@final
@dataclass(frozen=True)
class Table:
    """Runs of the same samples under one setting, sorted by budget and then the best first."""

    cell: Cell
    label: str
    runs: tuple[Run, ...]
    """Runs of bounded caches."""
    full: Run | None
    """The full cache on the same samples. It keeps all tokens with every prefill, so one with
    another prefill will do."""
    policies: Mapping[str, str]
    """Labels by `Run.policy_key`."""

    @property
    def is_ppl(self) -> bool:
        """Whether the values are perplexities."""
        return self.all_runs[0].is_ppl

    @property
    def budgets(self) -> list[str]:
        """The budgets, from small to large."""
        return list(dict.fromkeys(run.budget for run in self.runs))

    @property
    def all_runs(self) -> tuple[Run, ...]:
        """The runs of bounded caches, and that of the full cache."""
        return self.runs if self.full is None else (*self.runs, self.full)

    def at(self, budget: str) -> list[Run]:
        """Return the runs of one budget."""
        return [run for run in self.runs if run.budget == budget]

    def base(self, run: Run) -> Run | None:
        """Return StreamingLLM at the budget of `run`, with the most settings in common, if any."""
        same = [r for r in self.runs if r.policy == BASE and r.budget == run.budget]
        if not same or run.policy in (BASE, FULL):
            return None
        return max(same, key=lambda other: agreement(run, other))

    @cached_property
    def full_row(self) -> Row | None:
        """The row of the full cache."""
        return None if self.full is None else self._run_row(self.full)

    @cached_property
    def by_budget(self) -> dict[str, list[Row]]:
        """Rows from the best on, by budget from the smallest on."""
        found = {}
        for budget in self.budgets:
            alone, drawn = split_draws(self.at(budget))
            rows = [self._run_row(run) for run in alone]
            rows += [self._draws_row(runs, label) for label, runs in drawn.items()]
            found[budget] = sorted(rows, key=lambda row: row.value if self.is_ppl else -row.value)
        return found

    def _run_row(self, run: Run) -> Row:
        base = self.base(run)
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
        is_single = len(run.losses) == 1
        low, high = UNKNOWN if is_single else run.interval
        has_no_loss_interval = run.is_ppl or is_single
        loss_low, loss_high = (None, None) if has_no_loss_interval else run.record["nll_interval"]
        return Row(
            name=run.policy,
            policy=self.policies[run.policy_key],
            budget=run.budget,
            value=run.value,
            low=low,
            high=high,
            against_base=against,
            far_against_base=far_against,
            loss=None if run.is_ppl else float(run.record["nll"]),
            loss_low=loss_low,
            loss_high=loss_high,
            loss_against_base=loss_against,
            mean_bytes=run.mean_bytes,
            peak_bytes=run.peak_bytes,
            mean_of_base=None if base is None else run.mean_bytes / base.mean_bytes,
            mean_of_full=None if self.full is None else run.mean_bytes / self.full.mean_bytes,
            peak_of_full=run.peak_bytes / run.full_bytes,
            by_position=tuple(tuple(bucket) for bucket in run.record.get("by_position", ())),
        )

    def _draws_row(self, runs: Sequence[Run], label: str) -> Row:
        values = [run.value for run in runs]
        cuts = quantiles(values, n=40, method="inclusive")
        mean_bytes = fmean(run.mean_bytes for run in runs)
        peak_bytes = max(run.peak_bytes for run in runs)
        base = self.base(runs[0])
        return Row(
            name=runs[0].policy,
            policy=label,
            budget=runs[0].budget,
            draws=len(runs),
            value=median(values),
            low=cuts[0],
            high=cuts[-1],
            loss=None if self.is_ppl else median(float(run.record["nll"]) for run in runs),
            mean_bytes=mean_bytes,
            peak_bytes=peak_bytes,
            mean_of_base=None if base is None else mean_bytes / base.mean_bytes,
            mean_of_full=None if self.full is None else mean_bytes / self.full.mean_bytes,
            peak_of_full=peak_bytes / runs[0].full_bytes,
        )


@final
@dataclass(frozen=True)
class Section:
    """All tables of one setting. Numbers of two sections are not compared with each other."""

    setting: Setting
    tables: tuple[Table, ...]

    @property
    def kv_bits(self) -> float | None:
        """Bits of a stored number of a key or value, scales included; None where unknown."""
        return self.tables[0].all_runs[0].kv_bits

    @cached_property
    def means(self) -> list[MeanRow]:
        """The full cache, then by budget the best first; random draws are left out."""
        if self.setting.kind == "ppl":
            return []
        by_policy: dict[tuple[str, str], list[tuple[Table, Run]]] = defaultdict(list)
        in_all: dict[str, set[int]] = defaultdict(set)
        capacities: dict[str, float] = {}
        for number, table in enumerate(self.tables):
            found = [] if table.full is None else [table.full]
            for budget in table.budgets:
                found += split_draws(table.at(budget))[0]
            for run in found:
                by_policy[run.budget, run.policy_key].append((table, run))
                in_all[run.budget].add(number)
                if run.budget:
                    capacity = float(run.record["capacity"] or 0)
                    capacities[run.budget] = max(capacity, capacities.get(run.budget, 0.0))
        in_all[""] = set(range(len(self.tables)))
        order = ["", *sorted(capacities, key=lambda budget: (capacities[budget], budget))]
        rows = [
            _mean_row(pairs[0][0].policies[key], budget, pairs, len(in_all[budget]))
            for (budget, key), pairs in by_policy.items()
        ]
        rows.sort(key=lambda row: (order.index(row.budget), not row.is_complete, -row.mean))
        return rows


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
