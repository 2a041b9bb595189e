"""What a cache reports, as a record and as text."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from lacache.policies.schedule import UNBOUNDED

if TYPE_CHECKING:
    from lacache.cache import CacheReport


def report_record(report: CacheReport) -> dict[str, Any]:
    """For JSON; a capacity of null has no limit."""
    record = asdict(report)
    if report.capacity == UNBOUNDED:
        record["capacity"] = None
    return record


def report_table(report: CacheReport, pinned: int) -> Table:
    """For people; `pinned` is the number of sinks."""
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
    table.add_row("memory", in_bytes(report.bytes))
    return table


def in_bytes(num_bytes: int) -> str:
    """Such as `5.6 MiB`."""
    size, unit = float(num_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
