"""Perplexity by position."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lacache.common.records import Record
from lacache.evals.compare import validate_same_text
from lacache.evals.perplexity import perplexity, running
from lacache.evals.plots.drawing import FAINT, INK, drawing
from lacache.evals.plots.lines import about, colour, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_perplexity(records: Sequence[Record], path: Path, window: int = 512) -> None:
    """Draw perplexity by position, and how the bounded caches differ from StreamingLLM.

    Args:
        records: runs on the same tokens.
        path: the PNG to write.
        window: tokens in a row that make one point.

    Raises:
        InputError: no runs, records of another kind, or on different tokens.
        MissingExtraError: matplotlib is not installed.
    """
    validate_same_text(records)
    tokens = records[0]["length"]
    window = max(8, min(window, tokens // 16))
    base = next((r for r in records if r["policy"]["name"] == "streaming"), None)
    compared = [r for r in records if base and r is not base and r["policy"]["name"] != "full"]
    with drawing(path, 10, 7.2 if compared else 5) as figure:
        ratios = [2.2, 1] if compared else [1]
        axes = figure.subplots(len(ratios), sharex=True, height_ratios=ratios, squeeze=False)[:, 0]
        top = axes[0]
        highest, lowest = 0.0, float("inf")
        for record, style in styled(records):
            points = running(record["nll"], window)
            middles = [(b.start + b.stop) / 2 for b in points]
            heights = [b.perplexity for b in points]
            highest, lowest = max(highest, *heights), min(lowest, *heights)
            top.plot(
                middles,
                heights,
                **style,
                label=f"{record['label']} ({perplexity(record['nll']):,.2f} over all)",
            )
        if highest > 5 * lowest:
            top.set_yscale("log")
            _plain_log_ticks(top)
        top.set_title(f"Perplexity by position ({about(records[0])})", pad=24)
        top.set_ylabel(f"perplexity of {window} tokens\n(lower is better)")
        _mark_positions(top, records)
        figure.legend(loc="outside lower center", ncols=len(records))
        if base:
            for record in compared:
                _draw_difference(axes[1], record, base, window)
        axes[-1].set_xlabel("token")
        axes[-1].set_xlim(0, tokens)
        axes[-1].xaxis.set_major_formatter("{x:,.0f}")


def _draw_difference(axes: Axes, record: Record, base: Record, window: int) -> None:
    """Bars of the perplexity of `record` over that of `base`, in per cent."""
    ours, theirs = running(record["nll"], window), running(base["nll"], window)
    percent = [100 * (a.perplexity / b.perplexity - 1) for a, b in zip(ours, theirs, strict=True)]
    axes.bar(
        [b.start for b in ours],
        percent,
        [0.92 * (b.stop - b.start) for b in ours],
        align="edge",
        color=[colour(record) if p < 0 else colour(base) for p in percent],
    )
    limit = 1.25 * max(0.1, *(abs(p) for p in percent))
    axes.set_ylim(-limit, limit)
    axes.axhline(0, color=INK, linewidth=1)
    axes.set_ylabel("difference in %")
    axes.set_title(
        f"{record['label']} against {base['label']}: below zero {record['label']} is better",
        fontsize=11,
    )


def _mark_positions(axes: Axes, records: Sequence[Record]) -> None:
    """Where the bounded caches are full, and where the model's trained context ends."""
    tokens = records[0]["length"]
    capacities = {r["capacity"] or tokens for r in records}
    marks = dict.fromkeys(capacities, "bounded caches full")
    context = records[0]["model"].get("trained_context")
    if context:
        marks[context] = "trained context ends"
    for position, text in marks.items():
        if position < tokens:
            axes.axvline(position, color=FAINT, linewidth=1, linestyle=(0, (2, 2)))
            axes.annotate(
                f"{text}: {position:,}",
                (position, 1),
                (0, 3),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="left" if position < tokens / 2 else "center",
                fontsize=9.5,
                color="#555555",
            )


def _plain_log_ticks(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_formatter(NullFormatter())
