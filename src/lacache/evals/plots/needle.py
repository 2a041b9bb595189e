"""Plot of scores by the depth of a needle and the length, with a panel for each policy."""

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill

from lacache.errors import InputError
from lacache.evals.plots.style import HEADING, drawing, panel_grid

Scores = Mapping[tuple[float, int], float]
"""Mean scores of one policy by (depth, length)."""

_COLUMNS = 4
_TITLE_WIDTH = 28


def plot_needle(panels: Mapping[str, Scores], title: str, path: Path) -> None:
    """Draw a heatmap for each policy, all with the same depths, lengths and colours.

    Cells without a score stay white.

    Args:
        panels: by the label of the policy; a depth is as the task records it.
        title: title of the plot.
        path: the PNG to write.

    Raises:
        InputError: there are no scores, or the path is not a PNG's.
        MissingExtraError: matplotlib is not installed.
    """
    places = sorted(set().union(*panels.values()))
    if not places:
        raise InputError("0 scores by depth leave nothing to draw; give runs of a needle task")
    depths = sorted({depth for depth, _ in places})
    lengths = sorted({length for _, length in places})
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    # Cells that are too small for a number show their colour alone.
    has_numbers = len(lengths) <= 8
    panel_height = max(2.2, min(4.5, 0.8 + 0.26 * len(depths)))
    width = max(7.0, columns * max(2.4, min(5.0, 1.0 + 0.55 * len(lengths))) + 0.9)
    with drawing(path, width, 1.0 + panel_height * rows) as figure:
        from matplotlib.colors import LinearSegmentedColormap

        # From orange to blue, distinct with every kind of colour blindness.
        colours = LinearSegmentedColormap.from_list("found", ["#D55E00", "#F5E9DC", "#0072B2"])
        figure.suptitle(title, **HEADING)
        grid = panel_grid(figure, len(panels), columns, sharex=True)
        for i, (axes, (label, scores)) in enumerate(zip(grid, panels.items(), strict=True)):
            values = [[scores.get((depth, n), float("nan")) for n in lengths] for depth in depths]
            image = axes.imshow(values, cmap=colours, vmin=0, vmax=1, aspect="auto")
            axes.set_title(fill(label, _TITLE_WIDTH), fontsize=9.5)
            axes.grid(visible=False)
            axes.set_xticks(range(len(lengths)), [f"{n:,}" for n in lengths], rotation=45)
            axes.set_yticks(range(len(depths)), [f"{100 * depth:.3g}" for depth in depths])
            axes.tick_params(labelsize=9, labelbottom=i + columns >= len(panels))
            for row, line in enumerate(values):
                for column, value in enumerate(line):
                    if has_numbers and value == value:
                        axes.text(
                            column,
                            row,
                            f"{100 * value:.0f}",
                            ha="center",
                            va="center",
                            fontsize=8.5,
                            color="black" if 0.2 < value < 0.8 else "white",
                        )
        figure.supxlabel("tokens of the prompt", fontsize=11)
        figure.supylabel("depth of the needle, %", fontsize=11)
        bar = figure.colorbar(image, ax=figure.axes, shrink=0.8, aspect=30)
        bar.set_label("score, %")
        bar.set_ticks([0, 0.5, 1], labels=["0", "50", "100"])
        bar.outline.set_visible(False)
