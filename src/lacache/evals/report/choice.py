"""Which methods a picture shows, where all of them would be too many."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import final

from lacache.evals.report.rows import split_draws
from lacache.evals.report.run import BASE, Run
from lacache.evals.report.sections import Table

MOST = 8


@final
@dataclass(frozen=True)
class Choice:
    """Methods by their keys, in a fixed order, and a sentence on those left out."""

    keys: tuple[str, ...]
    note: str


def choose(tables: Sequence[Table], labels: Mapping[str, str], most: int = MOST) -> Choice:
    """All methods, or the best settings of each kind, or the best of these; StreamingLLM always.

    Settings are compared by how far they are above the mean of their table and budget (in nats for
    perplexity), averaged over the tables and budgets that they were run in.
    """
    gains: dict[str, list[float]] = defaultdict(list)
    names: dict[str, str] = {}
    for table in tables:
        for budget in table.budgets:
            runs = split_draws([run for run in table.runs if run.budget == budget])[0]
            middle = fmean(_worth(run) for run in runs) if runs else 0.0
            for run in runs:
                gains[run.method_key].append(_worth(run) - middle)
                names[run.method_key] = run.method
    order = sorted(gains, key=lambda key: (names[key] != BASE, -fmean(gains[key]), labels[key]))
    if len(order) <= most:
        return Choice(tuple(order), "")
    best_of_kind = list({names[key]: key for key in reversed(order)}.values())
    chosen = sorted(best_of_kind, key=order.index)[:most]
    left_out = len(order) - len(chosen)
    return Choice(
        tuple(chosen),
        f"Of each method only its best settings are drawn, and {left_out} others are in the "
        "tables alone.",
    )


def _worth(run: Run) -> float:
    return -math.log(run.value) if run.is_ppl else run.value
