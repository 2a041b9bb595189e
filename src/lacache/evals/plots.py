"""Pictures, always made from records. Needs the extra `plots`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lacache.core.errors import InputError
from lacache.core.packages import require_modules
from lacache.evals.compare import check_same_text
from lacache.evals.perplexity import perplexity, running
from lacache.evals.records import Record, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours of Okabe and Ito, told apart with every kind of colour blindness.
_COLOURS = {"full": "#444444", "streaming": "#0072B2", "ladder": "#D55E00"}
_OTHER_COLOURS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Two caches of one size often lie on each other, so the lower line is wide and the upper one thin.
_LINES: dict[str, dict[str, Any]] = {
    "full": {"linewidth": 2, "linestyle": (0, (1, 1))},
    "streaming": {"linewidth": 5, "alpha": 0.55},
    "ladder": {"linewidth": 1.8},
}
_INK = "#222222"
_FAINT = "#8A8A8A"
_MIB = 2**20
_STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
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


@contextmanager
def drawing(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure that is saved to `path` when the block ends."""
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


def plot_ladder(record: Record, path: Path) -> None:
    """Draw which tokens each layer holds: layers down, tokens across.

    Args:
        record: `num_seen`, `kept` (distinct lists of token numbers) and `layer_to_kept` (which list
            each layer has), as a reading and `lacache inspect --json` give them.
        path: the PNG to write.

    Raises:
        InputError: the record is of another kind or nothing has been seen.
        MissingExtraError: matplotlib is not installed.
    """
    num_seen, kept, layer_to_kept = _need(record, "num_seen", "kept", "layer_to_kept")
    if num_seen < 1:
        raise InputError(f"num_seen={num_seen} leaves nothing to draw; try num_seen=1")
    held = len(kept[0])
    alive = sorted(set().union(*kept))
    sinks = next((i for i, t in enumerate(kept[0]) if any(k[i] != i for k in kept)), held)
    start = _first_drawn(alive, sinks, num_seen)
    by_all = set(kept[0]).intersection(*kept)
    dense = next((t for t in range(num_seen, 0, -1) if t - 1 not in by_all), 0)
    close_up = max(0, dense - 112), min(num_seen, max(0, dense - 112) + 128)
    has_close_up = len(kept) > 1 and num_seen - start > 300
    with drawing(path, 12, 6.8 if has_close_up else 4.2) as figure:
        axes = figure.subplots(2 if has_close_up else 1, squeeze=False)[:, 0]
        figure.suptitle(
            f"What each layer holds after {num_seen:,} tokens: {held:,} each over "
            f"{len(layer_to_kept)} layers, {len(alive):,} different ones together",
            x=0.01,
            ha="left",
            weight="bold",
            size=13,
        )
        _draw_kept(axes[0], record, (start, num_seen))
        axes[0].set_title(_before(alive, sinks, start, num_seen), weight="normal", size=11)
        if held < num_seen:
            _mark_window(axes[0], num_seen - held + sinks, held)
        if has_close_up:
            _draw_kept(axes[1], record, close_up)
            axes[1].set_title(
                f"Close up of tokens {close_up[0]:,} to {close_up[1] - 1:,}: different layers keep "
                "different old tokens, all layers keep the newest",
                weight="normal",
                size=11,
            )


def _first_drawn(alive: list[int], sinks: int, num_seen: int) -> int:
    """Where to start, so that the few very old tokens do not squeeze all others."""
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
    axes.axvline(edge - 0.5, color=_INK, linewidth=1.4, linestyle=(0, (4, 2)))
    axes.annotate(
        f"a plain window of {held:,}\nwould start here",
        (edge, 0.07),
        (-9, 0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="right",
        fontsize=9.5,
        bbox={"boxstyle": "round", "facecolor": "white", "edgecolor": _FAINT},
    )


def _draw_kept(axes: Axes, record: Record, tokens: tuple[int, int]) -> None:
    """The share of tokens kept, in as many columns as can be told apart."""
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import MaxNLocator

    first, stop = tokens
    width = max(1, (stop - first) // 1500)
    columns = -(-(stop - first) // width)
    shares = []
    for kept in record["kept"]:
        row = np.zeros(columns * width)
        inside = [t - first for t in kept if first <= t < stop]
        row[inside] = 1.0
        shares.append(row.reshape(columns, width).mean(axis=1))
    image = np.stack([shares[i] for i in record["layer_to_kept"]])
    # A single token in a wide column must still be seen.
    image = np.where(image > 0, np.maximum(image, 0.25), 0.0)
    colours = LinearSegmentedColormap.from_list(
        "kept", ["#FFFFFF", "#F6B98A", "#D55E00", "#8A3D00"]
    )
    num_layers = len(image)
    axes.imshow(
        image,
        aspect="auto",
        interpolation="nearest",
        cmap=colours,
        vmin=0,
        vmax=1.35,
        extent=(first - 0.5, first + columns * width - 0.5, num_layers - 0.5, -0.5),
    )
    axes.set_xlim(first - 0.5, stop - 0.5)
    axes.grid(visible=False)
    axes.set_ylabel("layer")
    axes.set_xlabel("token" if width == 1 else f"token ({width} to a column: darker, more of them)")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if stop - first <= 200:
        axes.set_yticks(np.arange(-0.5, num_layers), minor=True)
        axes.set_xticks(np.arange(first - 0.5, stop), minor=True)
        axes.grid(which="minor", color="white", linewidth=0.5)
        axes.tick_params(which="minor", length=0)


def plot_perplexity(records: Sequence[Record], path: Path, window: int = 512) -> None:
    """Draw perplexity by position, and how the bounded caches differ from StreamingLLM.

    Args:
        records: readings of the same tokens.
        path: the PNG to write.
        window: tokens in a row that make one point.

    Raises:
        InputError: no records, records of another kind, or of different tokens.
        MissingExtraError: matplotlib is not installed.
    """
    check_same_text(records)
    tokens = records[0]["tokens"]
    window = max(8, min(window, tokens // 16))
    base = next((r for r in records if r["policy"]["name"] == "streaming"), None)
    compared = [r for r in records if base and r is not base and r["policy"]["name"] != "full"]
    with drawing(path, 10, 7.2 if compared else 5) as figure:
        ratios = [2.2, 1] if compared else [1]
        axes = figure.subplots(len(ratios), sharex=True, height_ratios=ratios, squeeze=False)[:, 0]
        top = axes[0]
        highest, lowest = 0.0, float("inf")
        for record, style in _styled(records):
            points = running(record["nll"], window)
            middles = [(b.start + b.stop) / 2 for b in points]
            heights = [b.perplexity for b in points]
            highest, lowest = max(highest, *heights), min(lowest, *heights)
            top.plot(
                middles,
                heights,
                **style,
                label=f"{record['label']} ({perplexity(record['nll']):,.2f} over all)",
            )
        if highest > 5 * lowest:
            top.set_yscale("log")
            _plain_log_ticks(top)
        top.set_title(f"Perplexity by position ({_about(records[0])})", pad=24)
        top.set_ylabel(f"perplexity of {window} tokens\n(lower is better)")
        _mark_positions(top, records)
        figure.legend(loc="outside lower center", ncols=len(records))
        if base:
            for record in compared:
                _draw_difference(axes[1], record, base, window)
        axes[-1].set_xlabel("token")
        axes[-1].set_xlim(0, tokens)
        axes[-1].xaxis.set_major_formatter("{x:,.0f}")


def _draw_difference(axes: Axes, record: Record, base: Record, window: int) -> None:
    """Bars of the perplexity of `record` over that of `base`, in per cent."""
    ours, theirs = running(record["nll"], window), running(base["nll"], window)
    percent = [100 * (a.perplexity / b.perplexity - 1) for a, b in zip(ours, theirs, strict=True)]
    axes.bar(
        [b.start for b in ours],
        percent,
        [0.92 * (b.stop - b.start) for b in ours],
        align="edge",
        color=[_colour(record) if p < 0 else _colour(base) for p in percent],
    )
    limit = 1.25 * max(0.1, *(abs(p) for p in percent))
    axes.set_ylim(-limit, limit)
    axes.axhline(0, color=_INK, linewidth=1)
    axes.set_ylabel("difference in %")
    axes.set_title(
        f"{record['label']} against {base['label']}: below zero {record['label']} is better",
        fontsize=11,
    )


def plot_memory(records: Sequence[Record], path: Path) -> None:
    """Draw the bytes that each cache holds by tokens read.

    Raises:
        InputError: no records, records of another kind, or of different tokens.
        MissingExtraError: matplotlib is not installed.
    """
    check_same_text(records)
    tokens = records[0]["tokens"]
    with drawing(path, 10, 5) as figure:
        axes = figure.subplots()
        for record, style in _styled(records):
            axes.plot(
                [0, *(seen for seen, _, _ in record["memory"])],
                [0, *(num_bytes / _MIB for _, _, num_bytes in record["memory"])],
                **style,
                label=f"{record['label']}: at most {record['peak_bytes'] / _MIB:,.1f} MiB",
            )
        peaks = [r["peak_bytes"] for r in records]
        most, least = max(peaks), min(peaks)
        name = next(r["label"] for r in records if r["peak_bytes"] == most)
        axes.set_title(f"Bytes in the cache ({_about(records[0])})")
        if most > 1.5 * least:
            axes.text(
                0.97,
                0.4,
                f"{name} at the end: {most / least:,.1f} times the smallest",
                transform=axes.transAxes,
                ha="right",
            )
        axes.set_xlabel("tokens read")
        axes.set_ylabel("cache in MiB")
        axes.set_xlim(0, tokens)
        axes.set_ylim(0, None)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend(loc="upper left")


def _need(record: Record, *keys: str) -> list[Any]:
    missing = [key for key in keys if key not in record]
    if missing:
        raise InputError(
            f"the record has no {', '.join(missing)}, which this plot needs; "
            "give a record of `lacache demo` or `lacache inspect --json`"
        )
    return [record[key] for key in keys]


def _colour(record: Record) -> str:
    return _COLOURS.get(record["policy"]["name"], _OTHER_COLOURS[0])


def _styled(records: Sequence[Record]) -> Iterator[tuple[Record, dict[str, Any]]]:
    """Records with line styles: a policy's own the first time, another colour after that."""
    used: set[str] = set()
    others = iter(_OTHER_COLOURS * len(records))
    for record in records:
        name = record["policy"]["name"]
        own = name in _LINES and name not in used
        used.add(name)
        if own:
            yield record, {"color": _COLOURS[name], **_LINES[name]}
        else:
            yield record, {"color": next(others), **_LINES["ladder"]}


def _about(record: Record) -> str:
    return f"{record['model']['name']}, {record['text']['name']}"


def _mark_positions(axes: Axes, records: Sequence[Record]) -> None:
    """Where the bounded caches are full, and where the model's trained context ends."""
    tokens = records[0]["tokens"]
    capacities = {r["policy"].get("capacity", tokens) for r in records}
    marks = dict.fromkeys(capacities, "bounded caches full")
    context = records[0]["model"].get("trained_context")
    if context:
        marks[context] = "trained context ends"
    for position, text in marks.items():
        if position < tokens:
            axes.axvline(position, color=_FAINT, linewidth=1, linestyle=(0, (2, 2)))
            axes.annotate(
                f"{text}: {position:,}",
                (position, 1),
                (0, 3),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="left" if position < tokens / 2 else "center",
                fontsize=9.5,
                color="#555555",
            )


def _plain_log_ticks(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_formatter(NullFormatter())
