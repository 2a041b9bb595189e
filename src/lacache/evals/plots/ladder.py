"""Plot of the tokens that each layer or KV head holds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lacache.common.records import Record
from lacache.errors import InputError
from lacache.evals.plots.style import FAINT, HEADING, INK, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_TICKS = 16


def plot_ladder(record: Record, path: Path) -> None:
    """Draw which tokens each layer holds: layers down, tokens across.

    Args:
        record: `num_seen`, `kept` (distinct lists of token numbers) and `layer_to_kept` (index of
            each layer's list) or `head_to_kept` (for each layer and KV head), as records of the
            demo and `lacache inspect --json` have them.
        path: the PNG to write.

    Raises:
        InputError: the record is of another kind, or no token has been seen.
        MissingExtraError: matplotlib is not installed.
    """
    rows_key = "head_to_kept" if "head_to_kept" in record else "layer_to_kept"
    num_seen, kept, rows = _fields(record, "num_seen", "kept", rows_key)
    num_layers = len(rows)
    by_head = rows_key == "head_to_kept" and any(len(set(heads)) > 1 for heads in rows)
    ticks = row_ticks([len(heads) for heads in rows] if by_head else [1] * num_layers)
    if rows_key == "head_to_kept":
        # If the heads of every layer hold the same tokens, a layer is one row.
        rows = [number for heads in rows for number in (heads if by_head else heads[:1])]
    if num_seen < 1:
        raise InputError(f"num_seen={num_seen} leaves nothing to draw; try num_seen=1")
    held = {len(tokens) for tokens in kept}
    alive = sorted(set().union(*kept))
    sinks = next((i for i in range(min(held)) if any(k[i] != i for k in kept)), min(held))
    start = _first_drawn(alive, sinks, num_seen)
    longest = [tokens for tokens in kept if len(tokens) == max(held)]
    by_all = set(longest[0]).intersection(*longest)
    dense = next((t for t in range(num_seen, 0, -1) if t - 1 not in by_all), 0)
    close_up = max(0, dense - 112), min(num_seen, max(0, dense - 112) + 128)
    has_close_up = len(kept) > 1 and num_seen - start > 300
    what = "KV head" if by_head else "layer"
    with drawing(path, 12, 6.8 if has_close_up else 4.2) as figure:
        axes = figure.subplots(2 if has_close_up else 1, squeeze=False)[:, 0]
        figure.suptitle(
            f"What each {what} holds after {num_seen:,} tokens: "
            f"{' to '.join(f'{n:,}' for n in sorted({min(held), max(held)}))} each over "
            f"{num_layers} layers, {len(alive):,} different ones together",
            **HEADING,
        )
        label = "layer.KV head" if by_head else "layer"
        image = partial(_draw_kept, kept=kept, rows=rows, ticks=ticks, label=label)
        image(axes[0], tokens=(start, num_seen))
        axes[0].set_title(_before(alive, sinks, start, num_seen), weight="normal", size=11)
        if len(held) == 1 and min(held) < num_seen:
            _mark_window(axes[0], num_seen - min(held) + sinks, min(held))
        if has_close_up:
            image(axes[1], tokens=close_up)
            finding = (
                f"different {what}s keep different old tokens, all {what}s keep the newest"
                if len(held) == 1
                else f"the {what}s with a long history keep "
                + ("all of them" if len(by_all) == num_seen else "different old tokens")
            )
            axes[1].set_title(
                f"Close up of tokens {close_up[0]:,} to {close_up[1] - 1:,}: {finding}",
                weight="normal",
                size=11,
            )


def _first_drawn(alive: list[int], sinks: int, num_seen: int) -> int:
    """Return the first token to draw, so that few very old tokens do not squeeze the others."""
    old = alive[sinks:]
    if not old:
        return 0
    start = num_seen - int(1.15 * (num_seen - old[len(old) // 100]))
    return start if start > num_seen // 4 else 0


def _before(alive: list[int], sinks: int, start: int, num_seen: int) -> str:
    if start == 0:
        return f"All tokens, 0 to {num_seen - 1:,}"
    others = sum(1 for t in alive[sinks:] if t < start)
    return (
        f"Tokens {start:,} to {num_seen - 1:,}; of the {start:,} before them only "
        f"the first {sinks} (sinks) and {others} more are held"
    )


def _mark_window(axes: Axes, edge: int, held: int) -> None:
    axes.axvline(edge - 0.5, color=INK, linewidth=1.4, linestyle=(0, (4, 2)))
    axes.annotate(
        f"a plain window of {held:,}\nwould start here",
        (edge, 0.07),
        (-9, 0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="right",
        fontsize=9.5,
        bbox={"boxstyle": "round", "facecolor": "white", "edgecolor": FAINT},
    )


def _draw_kept(
    axes: Axes,
    *,
    kept: list[list[int]],
    rows: list[int],
    ticks: dict[int, str],
    label: str,
    tokens: tuple[int, int],
) -> None:
    """Draw the share of tokens kept, in at most 1,500 columns."""
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import MaxNLocator

    first, stop = tokens
    width = max(1, (stop - first) // 1500)
    columns = -(-(stop - first) // width)
    shares = []
    for held in kept:
        row = np.zeros(columns * width)
        inside = [t - first for t in held if first <= t < stop]
        row[inside] = 1.0
        shares.append(row.reshape(columns, width).mean(axis=1))
    image = np.stack([shares[i] for i in rows])
    # A single token in a wide column must still be visible.
    image = np.where(image > 0, np.maximum(image, 0.25), 0.0)
    colours = LinearSegmentedColormap.from_list(
        "kept", ["#FFFFFF", "#F6B98A", "#D55E00", "#8A3D00"]
    )
    axes.imshow(
        image,
        aspect="auto",
        interpolation="nearest",
        cmap=colours,
        vmin=0,
        vmax=1.35,
        extent=(first - 0.5, first + columns * width - 0.5, len(rows) - 0.5, -0.5),
    )
    axes.set_xlim(first - 0.5, stop - 0.5)
    axes.grid(visible=False)
    axes.set_ylabel(label)
    axes.set_xlabel("token" if width == 1 else f"token ({width} to a column: darker, more of them)")
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if stop - first <= 200:
        axes.set_yticks(np.arange(-0.5, len(rows)), minor=True)
        axes.set_xticks(np.arange(first - 0.5, stop), minor=True)
        axes.grid(which="minor", color="white", linewidth=0.5)
        axes.tick_params(which="minor", length=0)


def row_ticks(num_heads: Sequence[int]) -> dict[int, str]:
    """Return the names of few rows, or of the first row of every n-th layer.

    Args:
        num_heads: rows of each layer, from the top.

    Returns:
        The layer (`12`) by row, or layer and KV head (`12.0`) where a layer has several rows.
    """
    by_head = max(num_heads) > 1
    rows = [(layer, head) for layer, heads in enumerate(num_heads) for head in range(heads)]
    step = -(-len(num_heads) // _MOST_TICKS)
    return {
        row: f"{layer}.{head}" if by_head else str(layer)
        for row, (layer, head) in enumerate(rows)
        if len(rows) <= _MOST_TICKS or (head == 0 and layer % step == 0)
    }


def _fields(record: Record, *keys: str) -> list[Any]:
    missing = [key for key in keys if key not in record]
    if missing:
        raise InputError(
            f"the record has no {', '.join(missing)}, which this plot needs; "
            "give a record of `lacache demo` or `lacache inspect --json`"
        )
    return [record[key] for key in keys]
