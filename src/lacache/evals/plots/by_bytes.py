"""Plots of scores and perplexities by the bytes that a cache held."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple, final

from lacache.errors import InputError
from lacache.evals.plots.style import (
    CLOUD,
    FRONT,
    HEADING,
    REFERENCE,
    draw_legend,
    drawing,
    legend_entries,
    panel_grid,
    policy_styles,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 3
# Characters of bold type that fit over a panel.
_TITLE_WIDTH = 42


@final
class Point(NamedTuple):
    """A run: mean bytes held, its score or perplexity, and the interval if it is drawn."""

    num_bytes: float
    value: float
    low: float | None = None
    high: float | None = None


@final
@dataclass(frozen=True)
class Line:
    """The runs of one policy on the same samples, or of one kind of random draws."""

    policy: str
    """The harness's name of the policy."""
    label: str
    points: tuple[Point, ...]

    @property
    def by_bytes(self) -> list[Point]:
        """The points, the smallest cache first."""
        return sorted(self.points, key=lambda point: point[:2])


@final
@dataclass(frozen=True)
class Panel:
    """One task at one length."""

    title: str
    lines: tuple[Line, ...]
    full: float | None
    """Score of the full cache, if it was run."""


def plot_scores(panels: Sequence[Panel], title: str, path: Path) -> None:
    """Draw scores by mean bytes in panels side by side, with the same colours in all of them.

    Raises:
        InputError: there are no panels, or the path is not a PNG's.
        MissingExtraError: matplotlib is not installed.
    """
    if not panels:
        raise InputError("0 panels leave nothing to draw; give at least one")
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    styles = policy_styles((line.policy, line.label) for p in panels for line in p.lines)
    width = max(8.0, 4.4 * columns)
    with drawing(path, width, 1.4 + 3.2 * rows) as figure:
        figure.suptitle(title, **HEADING)
        grid = panel_grid(figure, len(panels), columns)
        for axes, panel in zip(grid, panels, strict=True):
            _draw_panel(axes, panel, styles)
        for axes in grid[::columns]:
            axes.set_ylabel("score (higher is better)")
        entries = legend_entries(grid)
        figure.legend(
            entries.values(),
            entries.keys(),
            loc="outside lower left",
            ncols=max(1, int(width / 3.2)),
            fontsize=9.5,
        )


def _draw_panel(axes: Axes, panel: Panel, styles: dict[str, dict[str, Any]]) -> None:
    sizes = [point.num_bytes for line in panel.lines for point in line.points]
    divisor, unit = _units(sizes)
    for line in panel.lines:
        points, style = line.by_bytes, styles[line.label]
        axes.plot(*_places(points, divisor), **style, label=line.label, linewidth=1.8, markersize=5)
        bands = [(p.num_bytes / divisor, p.low, p.high) for p in points if p.low is not None]
        if bands:
            places, lows, highs = zip(*bands, strict=True)
            axes.vlines(places, lows, highs, color=style["color"], linewidth=1, alpha=0.45)
    if panel.full is not None:
        axes.axhline(panel.full, **REFERENCE, label="Full cache")
    axes.set_title(fill(panel.title, _TITLE_WIDTH), fontsize=10)
    axes.set_ylim(-0.04, 1.04)
    axes.set_xlim(0, 1.05 * max(sizes) / divisor)
    _label_bytes(axes, unit)


def front(points: Iterable[Point], *, lower_is_better: bool) -> list[Point]:
    """Return the points that no other point beats with as few bytes, by bytes."""
    best: list[Point] = []
    sign = 1 if lower_is_better else -1
    for point in sorted(points, key=lambda p: (p.num_bytes, sign * p.value)):
        if not best or sign * point.value < sign * best[-1].value:
            best.append(point)
    return best


def plot_pareto(
    lines: Sequence[Line],
    clouds: Sequence[Line],
    title: str,
    path: Path,
    *,
    lower_is_better: bool,
    full: float | None = None,
) -> None:
    """Draw scores or perplexities by mean bytes, with the Pareto front.

    Args:
        lines: the policies with a name.
        clouds: random draws, as small grey points.
        title: title of the plot.
        path: the PNG to write.
        lower_is_better: values are perplexities; else scores from 0 to 1.
        full: value of the full cache, drawn as a horizontal line.

    Raises:
        InputError: there are no points, or the path is not a PNG's.
        MissingExtraError: matplotlib is not installed.
    """
    points = [point for line in (*lines, *clouds) for point in line.points]
    if not points:
        raise InputError("0 points leave nothing to draw; give runs of bounded caches")
    divisor, unit = _units(point.num_bytes for point in points)
    styles = policy_styles((line.policy, line.label) for line in lines)
    with drawing(path, 9.5, 5.6 + 0.22 * (len(lines) // 3)) as figure:
        axes = figure.subplots()
        for cloud in clouds:
            axes.scatter(
                *_places(cloud.points, divisor),
                s=14,
                color=CLOUD,
                alpha=0.6,
                linewidths=0,
                label=f"{cloud.label} ({len(cloud.points)} points)",
                zorder=2,
            )
        reached = front(points, lower_is_better=lower_is_better)
        if len(reached) > 1:
            axes.step(*_places(reached, divisor), **FRONT, label="best with as few bytes")
        for line in lines:
            axes.plot(
                *_places(line.by_bytes, divisor),
                **styles[line.label],
                linewidth=1.4,
                markersize=7,
                markeredgecolor="white",
                label=line.label,
                zorder=3,
            )
        sizes = [point.num_bytes / divisor for point in points]
        if max(sizes) - min(sizes) < 0.1 * max(sizes):
            # Sizes that are nearly equal should look so.
            axes.set_xlim(min(sizes) - 0.05 * max(sizes), 1.05 * max(sizes))
        low, high = (end(point.value for point in points) for end in (min, max))
        if not lower_is_better:
            low, high = 0.0, 1.0
            axes.set_ylim(-0.04, 1.04)
        elif low > 0 and high > 4 * low:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:,g}")
        reach = max(high - low, 0.02 * abs(high))
        if full is not None and low - reach <= full <= high + reach:
            axes.axhline(full, **REFERENCE, label="Full cache")
        elif full is not None:
            # Drawn to scale it would squeeze all others.
            where = "above" if full > high else "below"
            axes.plot([], [], " ", label=f"Full cache: {full:,.4g}, far {where}")
        axes.set_title(title)
        _label_bytes(axes, unit)
        measure = "perplexity (lower" if lower_is_better else "score (higher"
        axes.set_ylabel(f"{measure} is better)")
        draw_legend(figure)


def _places(points: Sequence[Point], divisor: float) -> tuple[list[float], list[float]]:
    """Return the coordinates of points, bytes in units of `divisor`."""
    return [p.num_bytes / divisor for p in points], [p.value for p in points]


def _units(num_bytes: Iterable[float]) -> tuple[float, str]:
    """Return the divisor for an axis of bytes, and the unit's name."""
    most = max(num_bytes, default=0.0)
    return (2.0**20, "MiB") if most >= 4 * 2**20 else (2.0**10, "KiB")


def _label_bytes(axes: Axes, unit: str) -> None:
    axes.set_xlabel(f"mean bytes of the cache in {unit}")
    axes.xaxis.set_major_formatter("{x:,g}")
