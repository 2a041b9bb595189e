"""A figure that ends as a PNG, in the style that all plots share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lacache.common.packages import require_modules
from lacache.common.records import replacing
from lacache.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#222222"
FAINT = "#8A8A8A"
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


def require_matplotlib() -> None:
    """Say at once that plots cannot be drawn, before any long work.

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
    """A figure that is saved to `path` when the block ends."""
    validate_png(path)
    require_matplotlib()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A figure of its own on the Agg canvas: no window system, and nothing global is set.
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        with replacing(path) as temporary:
            figure.savefig(temporary)
