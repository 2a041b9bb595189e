"""What each method makes of the bytes that it holds, with patterns drawn by chance behind."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, final

from lacache.errors import InputError
from lacache.evals.plots.drawing import FAINT, drawing
from lacache.evals.plots.methods import CLOUD, in_units, method_styles


@final
class ParetoPoint(NamedTuple):
    """Mean bytes held, and a score or a perplexity."""

    num_bytes: float
    value: float


@final
@dataclass(frozen=True)
class ParetoLine:
    """The runs of one method, or of one kind of draws by chance."""

    method: str
    label: str
    points: tuple[ParetoPoint, ...]


def front(points: Sequence[ParetoPoint], *, lower_is_better: bool) -> list[ParetoPoint]:
    """The points that no other beats with as few bytes, by bytes."""
    best: list[ParetoPoint] = []
    sign = 1 if lower_is_better else -1
    for point in sorted(points, key=lambda p: (p.num_bytes, sign * p.value)):
        if not best or sign * point.value < sign * best[-1].value:
            best.append(point)
    return best


def plot_pareto(
    lines: Sequence[ParetoLine],
    clouds: Sequence[ParetoLine],
    title: str,
    path: Path,
    *,
    measure: str,
    lower_is_better: bool,
    full: float | None = None,
) -> None:
    """Draw values by mean bytes.

    Args:
        lines: the methods that are named.
        clouds: draws by chance, as small grey points.
        title: of the picture.
        path: the PNG to write.
        measure: what is upwards, such as "perplexity".
        lower_is_better: which way the front runs; if higher is better, values are scores from 0
            to 1.
        full: value of the full cache, as a line across.

    Raises:
        InputError: nothing to draw, or a path that is not a PNG's.
        MissingExtraError: matplotlib is not installed.
    """
    points = [point for line in lines for point in line.points]
    everything = points + [point for cloud in clouds for point in cloud.points]
    if not everything:
        raise InputError("0 points leave nothing to draw; give runs of bounded caches")
    divide, unit = in_units(point.num_bytes for point in everything)
    styles = method_styles((line.method, line.label) for line in lines)
    with drawing(path, 9.5, 5.6 + 0.22 * (len(lines) // 3)) as figure:
        axes = figure.subplots()
        for cloud in clouds:
            axes.scatter(
                [p.num_bytes / divide for p in cloud.points],
                [p.value for p in cloud.points],
                s=14,
                color=CLOUD,
                alpha=0.6,
                linewidths=0,
                label=f"{cloud.label} ({len(cloud.points)} points)",
                zorder=2,
            )
        reached = front(everything, lower_is_better=lower_is_better)
        if len(reached) > 1:
            axes.step(
                [p.num_bytes / divide for p in reached],
                [p.value for p in reached],
                where="post",
                color=FAINT,
                linewidth=1,
                linestyle=(0, (2, 2)),
                label="best with as few bytes",
                zorder=2,
            )
        for line in lines:
            ordered = sorted(line.points)
            axes.plot(
                [p.num_bytes / divide for p in ordered],
                [p.value for p in ordered],
                **styles[line.label],
                linewidth=1.4,
                markersize=7,
                markeredgecolor="white",
                label=line.label,
                zorder=3,
            )
        sizes = [point.num_bytes / divide for point in everything]
        if max(sizes) - min(sizes) < 0.1 * max(sizes):
            # Sizes that are nearly equal should look so.
            axes.set_xlim(min(sizes) - 0.05 * max(sizes), 1.05 * max(sizes))
        low, high = (end(point.value for point in everything) for end in (min, max))
        if not lower_is_better:
            low, high = 0.0, 1.0
            axes.set_ylim(-0.04, 1.04)
        elif low > 0 and high > 4 * low:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:,g}")
        reach = max(high - low, 0.02 * abs(high))
        if full is not None and low - reach <= full <= high + reach:
            axes.axhline(
                full, color=FAINT, linewidth=1.6, linestyle=(0, (4, 2)), label="Full cache"
            )
        elif full is not None:
            # Drawn to scale it would press all others together.
            where = "above" if full > high else "below"
            axes.plot([], [], " ", label=f"Full cache: {full:,.4g}, far {where}")
        axes.set_title(title)
        axes.set_xlabel(f"mean bytes of the cache in {unit}")
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.set_ylabel(f"{measure} ({'lower' if lower_is_better else 'higher'} is better)")
        figure.legend(loc="outside lower center", ncols=3, fontsize=9.5)
