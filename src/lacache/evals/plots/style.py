"""Shared parts of all plots: a figure saved as a PNG, its style, and the looks of policies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lacache.common.packages import require_modules
from lacache.common.records import replacing
from lacache.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#222222"
FAINT = "#8A8A8A"
CLOUD = "#B8B8B8"
"""The colour of random draws."""
REFERENCE: dict[str, Any] = {"color": FAINT, "linewidth": 1.6, "linestyle": (0, (4, 2))}
"""The line of a full cache's value."""
FRONT: dict[str, Any] = {
    "where": "post",
    "color": FAINT,
    "linewidth": 1,
    "linestyle": (0, (2, 2)),
    "zorder": 2,
}
"""The steps along points that no other beats."""
HEADING: dict[str, Any] = {"x": 0.01, "ha": "left", "weight": "bold", "size": 13}
"""The text style of a figure's title."""

_STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 150,
}

# Colours of Okabe and Ito, then of Tol's muted set: distinct with every kind of colour blindness.
_LOOKS = {
    "full": ("#444444", "."),
    "streaming": ("#0072B2", "o"),
    "ladder": ("#D55E00", "s"),
    "uniform": ("#E69F00", "^"),
    "random-ladder": ("#999933", "*"),
    "keydiff": ("#009E73", "D"),
    "knorm": ("#56B4E9", "v"),
    "lagkv": ("#CC79A7", "P"),
    "tova": ("#332288", "X"),
    "h2o": ("#882255", "<"),
    "snapkv": ("#117733", ">"),
    "pyramidkv": ("#AA4499", "h"),
    "balanced": ("#AA3377", "p"),
    "recall": ("#228833", "d"),
    "paper": ("#661100", "H"),
}
_OTHER_LOOKS = (
    ("#117733", "p"),
    ("#882255", "d"),
    ("#332288", "8"),
    ("#CC79A7", "H"),
    ("#009E73", "P"),
    ("#E69F00", "v"),
    ("#56B4E9", "X"),
)


def require_matplotlib() -> None:
    """Check that plots can be drawn, before any long work.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_modules("matplotlib", why="drawing plots", extra="plots")


def validate_png(path: Path) -> None:
    """Raise InputError unless the file's name is that of a PNG."""
    if path.suffix.lower() != ".png":
        raise InputError(f"plots are PNG files, and {path} is not named so; try {path.stem}.png")


@contextmanager
def drawing(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Yield a figure, in inches, that is saved as a PNG when the block ends.

    Raises:
        InputError: the path is not a PNG's, or it cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    validate_png(path)
    require_matplotlib()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A separate figure on the Agg canvas: no window system, and no global state.
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        with replacing(path) as temporary:
            figure.savefig(temporary)


def policy_styles(policies: Iterable[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """Return a colour and a marker for each label, as matplotlib's `plot` takes them.

    A known policy has the same look in every plot, where it appears first; further settings of
    it, and unknown policies, take other looks.

    Args:
        policies: name and label of each; names are the harness's, labels are all different.
    """
    looks: dict[str, tuple[str, str]] = {}
    named = {label: name for name, label in policies}
    for label, name in named.items():
        if name in _LOOKS and _LOOKS[name] not in looks.values():
            looks[label] = _LOOKS[name]
    used = {colour for colour, _ in looks.values()}
    free = tuple(look for look in _OTHER_LOOKS if look[0] not in used) or _OTHER_LOOKS
    for i, label in enumerate(label for label in named if label not in looks):
        looks[label] = free[i % len(free)]
    return {label: {"color": colour, "marker": marker} for label, (colour, marker) in looks.items()}


def legend_entries(all_axes: Iterable[Axes]) -> dict[str, Any]:
    """Return the handles of several axes by label, each label once, for one legend."""
    entries: dict[str, Any] = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    return entries


def draw_legend(figure: Figure) -> None:
    """Draw one legend below all axes, in as many columns as fit, 3 at most."""
    import numpy as np

    entries = legend_entries(figure.axes)
    lengths = [len(label) for label in entries]

    def width(columns: int) -> float:
        """Return about the inches that columns of labels take, each with a line before it."""
        by_column = np.array_split(lengths, columns)
        return sum(0.072 * max(column, default=0) + 0.7 for column in by_column)

    fitting = [columns for columns in (3, 2) if width(columns) <= figure.get_figwidth()]
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside lower center",
        ncols=fitting[0] if fitting else 1,
        fontsize=9.5,
    )


def panel_grid(figure: Figure, count: int, columns: int, **options: Any) -> list[Axes]:
    """Return the axes of `count` panels in rows of `columns`; the last row's others are hidden.

    Args:
        figure: to draw on.
        count: panels, at least one.
        columns: panels side by side.
        options: further ones of matplotlib's `subplots`, such as `sharex`.
    """
    grid = figure.subplots(-(-count // columns), columns, sharey=True, squeeze=False, **options)
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    return list(grid.flat[:count])


def mark_position(
    axes: Axes, position: int, text: str, offset: tuple[float, float], ha: str
) -> None:
    """Mark a position by a vertical line, and write a text at its upper end."""
    axes.axvline(position, color=FAINT, linewidth=1, linestyle=(0, (2, 2)))
    axes.annotate(
        f"{text}: {position:,}",
        (position, 1),
        offset,
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha=ha,
        fontsize=9.5,
        color="#555555",
    )
