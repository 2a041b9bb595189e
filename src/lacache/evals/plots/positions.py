"""Plot of perplexity by position, with a line for each policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from lacache.errors import InputError
from lacache.evals.perplexity import running
from lacache.evals.plots.style import draw_legend, drawing, mark_position, policy_styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@final
@dataclass(frozen=True)
class PositionLine:
    """The losses of one policy on a document: `nll[i]`, in nats, is of token `i + 1`."""

    policy: str
    label: str
    nll: tuple[float, ...]


def plot_positions(
    lines: Sequence[PositionLine],
    title: str,
    path: Path,
    *,
    trained_context: int | None = None,
    window: int = 512,
) -> None:
    """Draw perplexity by position, in windows of tokens, on a logarithmic scale.

    Args:
        lines: policies on the same tokens.
        title: title of the plot.
        path: the PNG to write.
        trained_context: end of the model's trained context; marked if the document is longer.
        window: tokens that make one point, fewer where the document is short.

    Raises:
        InputError: there are no lines, or they differ in length.
        MissingExtraError: matplotlib is not installed.
    """
    lengths = {len(line.nll) for line in lines}
    if len(lengths) != 1:
        raise InputError(
            f"lines of {len(lengths)} different lengths were given, and all must be of the same "
            "tokens; give runs of one document"
        )
    tokens = lengths.pop() + 1
    window = max(8, min(window, tokens // 16))
    styles = policy_styles((line.policy, line.label) for line in lines)
    with drawing(path, 10, 5.2 + 0.22 * (len(lines) // 3)) as figure:
        axes = figure.subplots()
        heights: list[float] = []
        for line in lines:
            style = {**styles[line.label], "marker": None, "linewidth": 1.8, "label": line.label}
            if line.policy == "full":
                style["linestyle"] = (0, (1, 1))
            heights += draw_by_position(axes, line.nll, window, style)
        # With less than a decade between them, powers of ten alone would leave one tick or none.
        subs = (1, 2, 5) if max(heights) > 8 * min(heights) else tuple(range(1, 10))
        set_log_scale(axes, subs, "{x:,g}")
        if trained_context is not None and trained_context < tokens:
            ha = "left" if trained_context < 0.7 * tokens else "right"
            mark_position(axes, trained_context, "trained context ends", (4, -12), ha)
        axes.set_title(title)
        axes.set_xlim(0, tokens)
        axes.set_xlabel("token")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_ylabel(f"perplexity of {window} tokens (lower is better)")
        draw_legend(figure)


def draw_by_position(
    axes: Axes, nll: Sequence[float], window: int, style: dict[str, Any]
) -> list[float]:
    """Draw the perplexity of each window of tokens at its middle; return the perplexities."""
    points = running(nll, window)
    heights = [point.perplexity for point in points]
    axes.plot([(point.start + point.stop) / 2 for point in points], heights, **style)
    return heights


def set_log_scale(axes: Axes, subs: tuple[int, ...], form: str) -> None:
    """Make the vertical axis logarithmic, with plain numbers at `subs` times powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(form)
    axes.yaxis.set_minor_formatter(NullFormatter())
