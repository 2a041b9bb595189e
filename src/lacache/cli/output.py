"""Formats of what commands print: reports of a cache, sizes and lists of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from lacache.policies.schedule import UNBOUNDED

if TYPE_CHECKING:
    from lacache.cache import CacheReport

_SHOWN_FIRST = 6
_SHOWN_LAST = 4


def report_record(report: CacheReport) -> dict[str, Any]:
    """Return a report for JSON, with null as the capacity of an unbounded cache."""
    record = asdict(report)
    if report.capacity == UNBOUNDED:
        record["capacity"] = None
    return record


def report_table(report: CacheReport, pinned: int) -> Table:
    """Return a report as a table; `pinned` is the number of sinks."""
    most = "no limit" if report.capacity == UNBOUNDED else f"{report.capacity:,}"
    table = Table("cache", "", show_header=False)
    table.add_row("tokens seen", f"{report.num_seen:,}")
    if report.num_cached == report.most_cached:
        table.add_row("held by each layer", f"{report.num_cached:,} of {most}")
    else:
        table.add_row("held on average", f"{report.num_cached:,} of {most}")
        table.add_row("held by some head", f"{report.most_cached:,}")
    table.add_row("of these never evicted", f"{min(pinned, report.num_cached):,}")
    table.add_row("held by some layer", f"{report.coverage:,}")
    table.add_row("compactions", f"{report.compactions:,}")
    table.add_row("memory", format_memory(report))
    return table


def format_memory(report: CacheReport) -> str:
    """Return the bytes that a cache takes, and of reserved ones how many are held."""
    size = format_bytes(report.bytes)
    if report.held_bytes == report.bytes:
        return size
    return f"{size} ({format_bytes(report.held_bytes)} held)"


def format_bytes(num_bytes: int) -> str:
    """Return a size with its unit, such as `5.6 MiB`."""
    size, unit = float(num_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def format_numbers(numbers: Sequence[int]) -> str:
    """Return increasing numbers as runs of a constant step: `0-3, 4-84 by 2, 86-100`.

    Of many runs only the first six and the last four are included.
    """
    runs: list[str] = []
    start = 0
    while start < len(numbers):
        stop = _end_of_run(numbers, start)
        if stop - start < 3 and numbers[stop - 1] - numbers[start] > 1:
            stop = start + 1  # two numbers that are not neighbours are no run
        first, last = numbers[start], numbers[stop - 1]
        step = numbers[start + 1] - first if stop - start > 1 else 1
        text = f"{first}" if stop - start == 1 else f"{first}-{last}"
        runs.append(text if step == 1 else f"{text} by {step}")
        start = stop
    hidden = len(runs) - _SHOWN_FIRST - _SHOWN_LAST
    if hidden > 1:
        runs[_SHOWN_FIRST:-_SHOWN_LAST] = [f"... {hidden} more runs ..."]
    return ", ".join(runs)


def _end_of_run(numbers: Sequence[int], start: int) -> int:
    """Return the end of the run that starts with the step of the first two numbers."""
    stop = min(start + 2, len(numbers))
    while stop < len(numbers) and (
        numbers[stop] - numbers[stop - 1] == numbers[start + 1] - numbers[start]
    ):
        stop += 1
    return stop
