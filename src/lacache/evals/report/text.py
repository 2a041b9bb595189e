"""Numbers and tables as text, and the conclusions of a report in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lacache.evals.intervals import UNKNOWN, Estimate
from lacache.evals.report.run import BASE, FULL, Run, agreement, budget_label, split_draws
from lacache.evals.report.tables import MeanRow, Section, Table

EQUAL_BYTES = 0.02
"""Mean bytes within this share of StreamingLLM's count as equal."""
NOTHING = "–"  # noqa: RUF001  # an en dash for an empty cell, as is usual in tables


def kib(num_bytes: float) -> str:
    """Format bytes as KiB, without decimals from 100 on."""
    size = num_bytes / 1024
    return f"{size:,.0f}" if size >= 100 else f"{size:,.3g}"


def share(value: float | None) -> str:
    """Format a share as per cent."""
    return NOTHING if value is None else f"{100 * value:.1f} %"


def number(value: float) -> str:
    """Format a number with three decimals, or fewer from 100 on."""
    if abs(value) >= 1e5:
        return f"{value:.2e}"
    return f"{value:,.3f}" if abs(value) < 100 else f"{value:,.1f}"


def with_interval(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """Format a number with its interval, if that is known."""
    if value is None:
        return NOTHING
    if low is None or high is None or (low, high) == UNKNOWN:
        return number(value)
    return f"{number(value)} [{number(low)}, {number(high)}]"


def signed(estimate: Estimate | None) -> str:
    """Format a difference; bold where its interval excludes 0."""
    if estimate is None:
        return NOTHING
    value, low, high = (f"{number(part) if part <= 0 else '+' + number(part)}" for part in estimate)
    if estimate[1:] == UNKNOWN:
        return value
    text = f"{value} [{low}, {high}]"
    return f"**{text}**" if estimate.low > 0 or estimate.high < 0 else text


def ratio(estimate: Estimate | None) -> str:
    """Format a ratio; bold where its interval excludes 1."""
    if estimate is None:
        return NOTHING
    text = f"× {estimate.value:.3f}"
    if estimate[1:] == UNKNOWN:
        return text
    text += f" [{number(estimate.low)}, {number(estimate.high)}]"
    return f"**{text}**" if estimate.low > 1 or estimate.high < 1 else text


def bytes_ratio(value: float | None) -> str:
    """Format the bytes over StreamingLLM's; bold where they are not equal."""
    if value is None:
        return NOTHING
    return f"× {value:.3f}" if abs(value - 1) <= EQUAL_BYTES else f"**× {value:.3f}**"


def markdown_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, left_aligned: int = 1
) -> str:
    """Return a table in Markdown; columns after the first `left_aligned` are right-aligned."""
    lines = [
        "| " + " | ".join(head) + " |",
        "|" + "|".join("---" if i < left_aligned else "--:" for i in range(len(head))) + "|",
    ]
    # A bar in a setting would start another column.
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def conclusions(section: Section) -> list[str]:
    """Return a sentence for each budget; for perplexity one for each table and budget."""
    if section.setting.kind == "ppl":
        return [_ppl_conclusion(table, b) for table in section.tables for b in table.budgets]
    full = next((row for row in section.means if row.name == FULL and row.is_complete), None)
    budgets = dict.fromkeys(row.budget for row in section.means if row.budget)
    return [_mean_conclusion(budget, section.means, full) for budget in budgets]


def draw_conclusions(table: Table) -> list[str]:
    """Return how many of the random draws the ladder of the same budget and settings beats.

    The ladder is the one with the most settings in common with the draws, or the best of several.
    """
    sentences = []
    sign = 1 if table.is_ppl else -1
    for budget in table.budgets:
        ladders = [run for run in table.at(budget) if run.policy == "ladder"]
        for label, drawn in split_draws(table.at(budget))[1].items() if ladders else ():

            def fitness(run: Run, draw: Run = drawn[0]) -> tuple[int, float]:
                return agreement(run, draw), -sign * run.value

            ladder = max(ladders, key=fitness)
            worse = sum(sign * run.value > sign * ladder.value for run in drawn)
            equal = sum(run.value == ladder.value for run in drawn)
            ties = f" and ties with {equal}" if equal else ""
            sentences.append(
                f"{budget_label(budget)}: {table.policies[ladder.policy_key]} beats {worse} of "
                f"{len(drawn)} draws of {label}{ties}."
            )
    return sentences


def _mean_conclusion(budget: str, rows: Sequence[MeanRow], full: MeanRow | None) -> str:
    here = [row for row in rows if row.budget == budget and row.is_complete]
    if not here:
        return f"{budget_label(budget)}: no policy was run on all tables, so no means are compared."
    best = [row for row in here if number(row.mean) == number(here[0].mean)]
    if len(best) == 1:
        winner = f"{best[0].policy} is best"
    elif len(best) == len(here):
        winner = f"all {len(best)} policies are equal"
    else:
        *others, last = (row.policy for row in best)
        winner = f"{', '.join(others)} and {last} are best"
    tables = f"{here[0].tables} table{'s' * (here[0].tables > 1)}"
    text = (
        f"{budget_label(budget)}, over {tables}: {winner} with a mean score of "
        f"{number(best[0].mean)}"
    )
    base = next((row for row in here if row.name == BASE), None)
    if base is not None and base not in best:
        text += f"; StreamingLLM {number(base.mean)}"
    if full is not None:
        text += f"; full cache {number(full.mean)}"
    shown = best[0]
    if shown.against_base is not None:
        text += (
            f". On the {shown.paired_tables} with signal {shown.policy} has "
            f"{ratio(shown.against_base).strip('*')} of StreamingLLM's mean"
            f"{_at_other_bytes(shown.mean_of_base)}"
        )
    return text + "."


def _ppl_conclusion(table: Table, budget: str) -> str:
    rows = [row for row in table.by_budget[budget] if row.draws == 1]
    subject = f"{table.label}, budget {budget_label(budget)}"
    if not rows:
        return f"{subject}: only random draws were run."
    best = rows[0]
    text = f"{subject}: {best.policy} is lowest with a perplexity of {number(best.value)}"
    if best.against_base is not None:
        text += f", {ratio(best.against_base).strip('*')} of StreamingLLM's"
        text += _at_other_bytes(best.mean_of_base)
    if table.full is not None:
        text += f"; full cache {number(table.full.value)}"
    return text + "."


def _at_other_bytes(mean_of_base: float | None) -> str:
    """Return a remark where a comparison is not at equal bytes."""
    if mean_of_base is None or abs(mean_of_base - 1) <= EQUAL_BYTES:
        return ""
    return f" at × {mean_of_base:.3f} of its mean bytes"
