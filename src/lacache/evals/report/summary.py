"""What the tables say, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lacache.common.records import Record
from lacache.evals.report.format import EQUAL_BYTES, number, ratio
from lacache.evals.report.means import MeanRow
from lacache.evals.report.numbers import SectionNumbers, TableNumbers
from lacache.evals.report.run import BASE, FULL, Run, budget_label


def sentences(part: SectionNumbers) -> list[str]:
    """One for each budget; of perplexity one for each text and budget."""
    if part.section.setting.kind != "ppl":
        return _of_means(part.means)
    return [_of_perplexity(table, budget) for table in part.tables for budget in table.by_budget]


def draws_beaten(table: TableNumbers, labels: Mapping[str, str]) -> list[str]:
    """How many of the draws by chance the ladder of the same budget and settings beats.

    Where no ladder has their settings, the one with the most of them; the best of several.
    """
    told = []
    sign = 1 if table.is_ppl else -1
    for budget in table.by_budget:
        ladders = [r for r in table.table.runs if r.budget == budget and r.method == "ladder"]
        for label, drawn in table.draws(budget).items() if ladders else ():
            settings = drawn[0].record["method"]
            ladder = max(ladders, key=lambda run: (_agreement(run, settings), -sign * run.value))
            worse = sum(sign * run.value > sign * ladder.value for run in drawn)
            equal = sum(run.value == ladder.value for run in drawn)
            ties = f" and ties with {equal}" if equal else ""
            told.append(
                f"{budget_label(budget)}: {labels[ladder.method_key]} beats {worse} of "
                f"{len(drawn)} draws of {label}{ties}."
            )
    return told


def _agreement(run: Run, settings: Record) -> int:
    ours = run.record["method"]
    return sum(name in ours and ours[name] == value for name, value in settings.items())


def _of_means(rows: Sequence[MeanRow]) -> list[str]:
    told = []
    full = next((row for row in rows if row.name == FULL), None)
    for budget in dict.fromkeys(row.budget for row in rows if row.budget):
        here = [row for row in rows if row.budget == budget and row.is_complete]
        if not here:
            told.append(
                f"{budget_label(budget)}: no method was run on all tables, so no means are "
                "compared."
            )
            continue
        best = [row for row in here if number(row.mean) == number(here[0].mean)]
        if len(best) == 1:
            told_best = f"{best[0].method} is best"
        elif len(best) == len(here):
            told_best = f"all {len(best)} methods are equal"
        else:
            told_best = f"{_and(best)} are best"
        tables = f"{here[0].tables} table{'s' * (here[0].tables > 1)}"
        text = (
            f"{budget_label(budget)}, over {tables}: {told_best} with a mean score of "
            f"{number(best[0].mean)}"
        )
        base = next((row for row in here if row.name == BASE), None)
        if base is not None and base not in best:
            text += f"; StreamingLLM {number(base.mean)}"
        if full is not None and full.is_complete:
            text += f"; full cache {number(full.mean)}"
        shown = best[0]
        if shown.against_base is not None:
            text += (
                f". On the {shown.paired_tables} with signal {shown.method} has "
                f"{ratio(shown.against_base).strip('*')} of StreamingLLM's mean"
                f"{_at_other_bytes(shown.mean_of_base)}"
            )
        told.append(text + ".")
    return told


def _at_other_bytes(mean_of_base: float | None) -> str:
    """A warning where a comparison is not at equal bytes."""
    if mean_of_base is None or abs(mean_of_base - 1) <= EQUAL_BYTES:
        return ""
    return f" at × {mean_of_base:.3f} of its mean bytes"


def _and(rows: Sequence[MeanRow]) -> str:
    names = [row.method for row in rows]
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _of_perplexity(table: TableNumbers, budget: str) -> str:
    rows = [row for row in table.by_budget[budget] if row.draws == 1]
    about = f"{table.label}, budget {budget_label(budget)}"
    if not rows:
        return f"{about}: only draws by chance were run."
    best = rows[0]
    text = f"{about}: {best.method} is lowest with a perplexity of {number(best.value)}"
    if best.against_base is not None:
        text += f", {ratio(best.against_base).strip('*')} of StreamingLLM's"
        text += _at_other_bytes(best.mean_of_base)
    if table.full is not None:
        text += f"; full cache {number(table.full.value)}"
    return text + "."
