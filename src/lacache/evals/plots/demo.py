"""Plots of the demo's runs: perplexity by position, and bytes by tokens seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lacache.common.records import Record
from lacache.evals.compare import validate_same_text
from lacache.evals.perplexity import perplexity, running
from lacache.evals.plots.positions import draw_by_position, set_log_scale
from lacache.evals.plots.style import INK, drawing, mark_position, policy_styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MIB = 2**20
# Lines of two caches of one size often overlap, so the lower one is wide and the upper one thin.
_LINES: dict[str, dict[str, Any]] = {
    "full": {"linewidth": 2, "linestyle": (0, (1, 1))},
    "streaming": {"linewidth": 5, "alpha": 0.55},
}
_THIN: dict[str, Any] = {"linewidth": 1.8}


def plot_perplexity(records: Sequence[Record], path: Path, window: int = 512) -> None:
    """Draw perplexity by position, and how the bounded caches differ from StreamingLLM.

    Args:
        records: runs on the same tokens.
        path: the PNG to write.
        window: consecutive tokens that make one point.

    Raises:
        InputError: there are no runs, or they are of another kind or on different tokens.
        MissingExtraError: matplotlib is not installed.
    """
    validate_same_text(records)
    tokens = records[0]["length"]
    window = max(8, min(window, tokens // 16))
    base = next((r for r in records if r["policy"]["name"] == "streaming"), None)
    compared = [r for r in records if base and r is not base and r["policy"]["name"] != "full"]
    with drawing(path, 10, 5 + 2.2 * len(compared)) as figure:
        ratios = [2.2, *(1.0 for _ in compared)]
        axes = figure.subplots(len(ratios), sharex=True, height_ratios=ratios, squeeze=False)[:, 0]
        top = axes[0]
        heights: list[float] = []
        styled = _styled(records)
        for record, style in styled:
            label = f"{record['label']} ({perplexity(record['nll']):,.2f} over all)"
            heights += draw_by_position(top, record["nll"], window, {**style, "label": label})
        if max(heights) > 5 * min(heights):
            set_log_scale(top, (1, 2, 5), "{x:,.0f}")
        top.set_title(f"Perplexity by position ({_subject(records[0])})", pad=24)
        top.set_ylabel(f"perplexity of {window} tokens\n(lower is better)")
        _mark_positions(top, records)
        figure.legend(loc="outside lower center", ncols=min(3, len(records)))
        colours = {record["label"]: style["color"] for record, style in styled}
        if base:
            for panel, record in zip(axes[1:], compared, strict=True):
                _draw_difference(panel, record, base, window, colours)
        axes[-1].set_xlabel("token")
        axes[-1].set_xlim(0, tokens)
        axes[-1].xaxis.set_major_formatter("{x:,.0f}")


def plot_memory(records: Sequence[Record], path: Path) -> None:
    """Draw the bytes that each cache holds by tokens seen.

    Raises:
        InputError: there are no runs, or they are of another kind or on different tokens.
        MissingExtraError: matplotlib is not installed.
    """
    validate_same_text(records)
    with drawing(path, 10, 5) as figure:
        axes = figure.subplots()
        for record, style in _styled(records):
            axes.plot(
                [0, *(seen for seen, _, _ in record["trace"])],
                [0, *(num_bytes / _MIB for _, _, num_bytes in record["trace"])],
                **style,
                label=f"{record['label']}: at most {record['peak_bytes'] / _MIB:,.1f} MiB",
            )
        largest = max(records, key=lambda record: float(record["peak_bytes"]))
        ratio = largest["peak_bytes"] / min(record["peak_bytes"] for record in records)
        axes.set_title(f"Bytes in the cache ({_subject(records[0])})")
        if ratio > 1.5:
            axes.text(
                0.97,
                0.4,
                f"{largest['label']} at the end: {ratio:,.1f} times the smallest",
                transform=axes.transAxes,
                ha="right",
            )
        axes.set_xlabel("tokens seen")
        axes.set_ylabel("cache in MiB")
        axes.set_xlim(0, records[0]["length"])
        axes.set_ylim(0, None)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend(loc="upper left")


def _subject(record: Record) -> str:
    return f"{record['model']['name']}, {record['task']['text']}"


def _styled(records: Sequence[Record]) -> list[tuple[Record, dict[str, Any]]]:
    """Return records with line styles, in the colours that policies have in every plot."""
    named = [(record["policy"]["name"], record) for record in records]
    looks = policy_styles((name, record["label"]) for name, record in named)
    return [
        (record, {"color": looks[record["label"]]["color"], **_LINES.get(name, _THIN)})
        for name, record in named
    ]


def _draw_difference(
    axes: Axes, record: Record, base: Record, window: int, colours: Mapping[str, str]
) -> None:
    """Draw bars of the perplexity of `record` over that of `base`, in per cent.

    A bar has the colour of the one that is better.
    """
    ours, theirs = running(record["nll"], window), running(base["nll"], window)
    percent = [100 * (a.perplexity / b.perplexity - 1) for a, b in zip(ours, theirs, strict=True)]
    for better, sign in ((record, -1), (base, 1)):
        bars = [(b, p) for b, p in zip(ours, percent, strict=True) if sign * p > 0]
        axes.bar(
            [b.start for b, _ in bars],
            [p for _, p in bars],
            [0.92 * (b.stop - b.start) for b, _ in bars],
            align="edge",
            color=colours[better["label"]],
            label=f"{better['label']} is better",
        )
    limit = 1.25 * max(0.1, *(abs(p) for p in percent))
    axes.set_ylim(-limit, limit)
    # Above the panel, where no bar can be.
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)
    axes.axhline(0, color=INK, linewidth=1)
    axes.set_ylabel("difference in %")
    axes.set_title(f"{record['label']} against {base['label']}", fontsize=11)


def _mark_positions(axes: Axes, records: Sequence[Record]) -> None:
    """Mark where the bounded caches are full, and where the model's trained context ends."""
    tokens = records[0]["length"]
    capacities = {r["capacity"] or tokens for r in records}
    marks = dict.fromkeys(capacities, "bounded caches full")
    context = records[0]["model"].get("trained_context")
    if context:
        marks[context] = "trained context ends"
    for position, text in marks.items():
        if position < tokens:
            ha = "left" if position < tokens / 2 else "center"
            mark_position(axes, position, text, (0, 3), ha)
