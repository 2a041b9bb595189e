"""Perplexity by position, one line for each method."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from lacache.errors import InputError
from lacache.evals.perplexity import running
from lacache.evals.plots.drawing import FAINT, drawing
from lacache.evals.plots.methods import method_styles


@final
@dataclass(frozen=True)
class PositionLine:
    """The losses of one method on a text: `nll[i]`, in nats, is of token `i + 1`."""

    method: str
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
    """Draw perplexity by position, in windows of tokens, with a logarithmic scale upwards.

    Args:
        lines: methods that read the same tokens.
        title: of the picture.
        path: the PNG to write.
        trained_context: where the model's training ended; marked if the text goes on.
        window: tokens that make one point, fewer where the text is short.

    Raises:
        InputError: no lines, or lines of unequal length.
        MissingExtraError: matplotlib is not installed.
    """
    lengths = {len(line.nll) for line in lines}
    if len(lengths) != 1:
        raise InputError(
            f"lines of {len(lengths)} different lengths were given, and all must be of the same "
            "tokens; give runs of one text"
        )
    tokens = lengths.pop() + 1
    window = max(8, min(window, tokens // 16))
    styles = method_styles((line.method, line.label) for line in lines)
    with drawing(path, 10, 5.2 + 0.22 * (len(lines) // 3)) as figure:
        from matplotlib.ticker import LogLocator, NullFormatter

        axes = figure.subplots()
        lowest, highest = float("inf"), 0.0
        for line in lines:
            points = running(line.nll, window)
            heights = [point.perplexity for point in points]
            lowest, highest = min(lowest, *heights), max(highest, *heights)
            style = {**styles[line.label], "marker": None}
            if line.method == "full":
                style["linestyle"] = (0, (1, 1))
            axes.plot(
                [(point.start + point.stop) / 2 for point in points],
                heights,
                **style,
                linewidth=1.8,
                label=line.label,
            )
        axes.set_yscale("log")
        # With less than a decade between them, powers of ten alone would leave one tick or none.
        subs = (1, 2, 5) if highest > 8 * lowest else tuple(range(1, 10))
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        if trained_context is not None and trained_context < tokens:
            axes.axvline(trained_context, color=FAINT, linewidth=1.2, linestyle=(0, (2, 2)))
            axes.annotate(
                f"trained context ends: {trained_context:,}",
                (trained_context, 1),
                (4, -12),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="left" if trained_context < 0.7 * tokens else "right",
                fontsize=9.5,
                color="#555555",
            )
        axes.set_title(title)
        axes.set_xlim(0, tokens)
        axes.set_xlabel("token")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_ylabel(f"perplexity of {window} tokens (lower is better)")
        figure.legend(loc="outside lower center", ncols=3, fontsize=9.5)
