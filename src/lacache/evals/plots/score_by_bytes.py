"""Scores by the bytes that a cache held, one line for each method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, final

from lacache.errors import InputError
from lacache.evals.plots.drawing import FAINT, drawing
from lacache.evals.plots.methods import in_units, method_styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 3


@final
class ScorePoint(NamedTuple):
    """One run: mean bytes held, score, and the interval of the score where it is known."""

    num_bytes: float
    score: float
    low: float | None = None
    high: float | None = None


@final
@dataclass(frozen=True)
class ScoreLine:
    """The runs of one method on the same samples, at different budgets."""

    method: str
    """The harness's name of it."""
    label: str
    points: tuple[ScorePoint, ...]


@final
@dataclass(frozen=True)
class ScorePanel:
    """One task at one length."""

    title: str
    lines: tuple[ScoreLine, ...]
    full: float | None
    """Score of the full cache, if it was run."""


def plot_score_by_bytes(panels: Sequence[ScorePanel], title: str, path: Path) -> None:
    """Draw panels side by side, with the same colours in all of them.

    Raises:
        InputError: no panels, or a path that is not a PNG's.
        MissingExtraError: matplotlib is not installed.
    """
    if not panels:
        raise InputError("0 panels leave nothing to draw; give at least one")
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    styles = method_styles((line.method, line.label) for p in panels for line in p.lines)
    width = max(8.0, 4.4 * columns)
    with drawing(path, width, 1.4 + 3.2 * rows) as figure:
        figure.suptitle(title, x=0.01, ha="left", weight="bold", size=13)
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for i, axes in enumerate(grid.flat):
            if i < len(panels):
                _draw(axes, panels[i], styles)
            else:
                axes.set_visible(False)
        for row in grid:
            row[0].set_ylabel("score (higher is better)")
        handles: dict[str, Any] = {}
        for axes in grid.flat:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside lower left",
            ncols=max(1, int(width / 3.2)),
            fontsize=9.5,
        )


def _draw(axes: Axes, panel: ScorePanel, styles: dict[str, dict[str, Any]]) -> None:
    sizes = [point.num_bytes for line in panel.lines for point in line.points]
    divide, unit = in_units(sizes)
    for line in panel.lines:
        points = sorted(line.points)
        places = [point.num_bytes / divide for point in points]
        style = styles[line.label]
        axes.plot(
            places,
            [point.score for point in points],
            **style,
            label=line.label,
            linewidth=1.8,
            markersize=5,
        )
        bands = [p for p in points if p.low is not None and p.high is not None]
        if bands:
            axes.vlines(
                [p.num_bytes / divide for p in bands],
                [p.low for p in bands if p.low is not None],
                [p.high for p in bands if p.high is not None],
                color=style["color"],
                linewidth=1,
                alpha=0.45,
            )
    if panel.full is not None:
        axes.axhline(
            panel.full, color=FAINT, linewidth=1.6, linestyle=(0, (4, 2)), label="Full cache"
        )
    axes.set_title(panel.title, fontsize=11)
    axes.set_ylim(-0.04, 1.04)
    axes.set_xlim(0, 1.05 * max(sizes) / divide)
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.set_xlabel(f"mean bytes of the cache in {unit}")
