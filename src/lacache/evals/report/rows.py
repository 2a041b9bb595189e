"""The numbers of a table: one row for each run, or for many draws by chance."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, quantiles
from typing import final

from lacache.evals.bootstrap import BLOCK
from lacache.evals.report.paired import UNKNOWN, Estimate, mean_difference, perplexity_ratio
from lacache.evals.report.run import Run
from lacache.evals.report.sections import Table

FEWEST_FAR = 50
"""Tokens that depend on what is far back, for their perplexity to say anything."""

FEWEST_DRAWS = 4
"""From so many runs on that differ by the seed of a method alone, they make one row."""


@final
@dataclass(frozen=True)
class Row:
    """A line of a table. What is not known, or makes no sense, is None."""

    name: str
    """The harness's name of the method."""
    method: str
    budget: str
    draws: int
    """Runs that this line is made of; more than one where a method draws by chance. The value is
    then their median, with the interval in which 95 % of them lie, and bytes are means."""
    value: float
    low: float
    high: float
    """Infinite where there is only one sample."""
    against_base: Estimate | None
    """Score minus StreamingLLM's, or perplexity over StreamingLLM's, on the same samples."""
    far_against_base: Estimate | None
    """Perplexity over StreamingLLM's, of the tokens that followed the same token last farther back
    than the capacity; None for scores and where there are few."""
    loss: float | None
    """Of the answer, in nats; None for perplexity, which is made of it."""
    loss_low: float | None
    loss_high: float | None
    loss_against_base: Estimate | None
    mean_bytes: float
    peak_bytes: float
    mean_of_base: float | None
    """Mean bytes over those of StreamingLLM at the same budget: 1 is a fair comparison."""
    mean_of_full: float | None
    """Mean bytes over those of the full cache on the same samples."""
    peak_of_full: float
    """Peak bytes over what a full cache holds at the end."""
    by_position: tuple[tuple[float, ...], ...] = ()
    """Perplexities as (first token, last token + 1, perplexity); none of draws and scores."""


def full_row(table: Table, labels: Mapping[str, str]) -> Row | None:
    """The line of the full cache."""
    return None if table.full is None else _row(table, table.full, labels)


def rows_at(table: Table, budget: str, labels: Mapping[str, str]) -> list[Row]:
    """The lines of one budget, the best first."""
    alone, drawn = split_draws([run for run in table.runs if run.budget == budget])
    rows = [_row(table, run, labels) for run in alone]
    rows += [_draws_row(table, runs, label) for label, runs in drawn.items()]
    is_ppl = any(run.is_ppl for run in table.runs)
    return sorted(rows, key=lambda row: row.value if is_ppl else -row.value)


def split_draws(runs: Sequence[Run]) -> tuple[list[Run], dict[str, list[Run]]]:
    """Runs that stand alone, and by name those that differ by the seed of their method alone."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        settings = {k: v for k, v in run.record["method"].items() if k != "seed"}
        groups[json.dumps(settings, sort_keys=True)].append(run)
    alone: list[Run] = []
    drawn: dict[str, list[Run]] = {}
    for same in groups.values():
        if len(same) < FEWEST_DRAWS:
            alone += same
            continue
        name = label = same[0].method
        number = 2
        while label in drawn:
            label, number = f"{name} {number}", number + 1
        drawn[label] = same
    return alone, drawn


def _row(table: Table, run: Run, labels: Mapping[str, str]) -> Row:
    base = table.base(run)
    against = far_against = loss_against = None
    if base is not None:
        if run.is_ppl:
            against = perplexity_ratio(run.losses, base.losses)
            capacity = run.record["capacity"]
            far = run.far_losses(capacity)
            of_base = base.far_losses(capacity)
            if min(len(far), len(of_base)) >= FEWEST_FAR:
                # Few of the tokens in a row are far ones.
                block = max(1, BLOCK * len(far) // len(run.losses))
                far_against = perplexity_ratio(far, of_base, block)
        else:
            against = mean_difference(run.scores, base.scores)
            loss_against = mean_difference(run.losses, base.losses)
    loss = None if run.is_ppl else float(run.record["nll"])
    low, high = run.interval
    loss_low, loss_high = (None, None) if run.is_ppl else run.record["nll_interval"]
    if len(run.losses) == 1:
        low, high = UNKNOWN
        loss_low = loss_high = None
    return Row(
        name=run.method,
        method=labels[run.method_key],
        budget=run.budget,
        draws=1,
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
    base = table.base(runs[0])
    return Row(
        name=runs[0].method,
        method=label,
        budget=runs[0].budget,
        draws=len(runs),
        value=median(values),
        low=cuts[0],
        high=cuts[-1],
        against_base=None,
        far_against_base=None,
        loss=None if runs[0].is_ppl else median(float(run.record["nll"]) for run in runs),
        loss_low=None,
        loss_high=None,
        loss_against_base=None,
        mean_bytes=mean_bytes,
        peak_bytes=max(run.peak_bytes for run in runs),
        mean_of_base=None if base is None else mean_bytes / base.mean_bytes,
        mean_of_full=None if table.full is None else mean_bytes / table.full.mean_bytes,
        peak_of_full=max(run.peak_bytes for run in runs) / runs[0].full_bytes,
    )
