"""Plots of the measurements of speed, from their records alone.

`python benchmarks/_plots.py` draws all that have a record.
"""

from pathlib import Path
from typing import Any

from lacache.common.records import Record, read_record
from lacache.evals.plots import drawing
from lacache.evals.plots.style import FAINT, INK

RESULTS = Path(__file__).parent / "results"
OURS, THEIRS, LIMIT = "#D55E00", "#0072B2", "#009E73"


def plot_decode(record: Record, path: Path) -> None:
    """Plot milliseconds per token of every way, and the limit of the memory bandwidth."""
    models = record["models"]
    rows = [
        {label: way for label, way in model["ways"].items() if "failed" not in way}
        for model in models
    ]
    with drawing(path, 11, 1.4 + 0.42 * sum(len(ways) + 2 for ways in rows)) as figure:
        heights = [len(ways) + 1 for ways in rows]
        all_axes = figure.subplots(len(models), squeeze=False, height_ratios=heights)[:, 0]
        for axes, model, ways in zip(all_axes, models, rows, strict=True):
            labels = sorted(ways, key=lambda label: ways[label]["mean_ms"])
            _bars(axes, labels, [ways[label]["mean_ms"] for label in labels])
            for place, label in enumerate(labels):
                limits = [one["limit_ms"] for one in ways[label]["rounds"]]
                axes.plot(
                    [sorted(limits)[len(limits) // 2]] * 2,
                    [place - 0.4, place + 0.4],
                    color=LIMIT,
                    linewidth=3,
                    label="weights and cache at the bandwidth of a copy" if place == 0 else None,
                )
            parameters = model["model"]["parameters"] / 1e6
            axes.set_title(
                f"{model['model']['name']}: {parameters:,.0f} million weights, "
                f"{_threads(record['environment']['threads'])}"
            )
            axes.set_xlabel(f"ms per token at {record['slots']} slots, mean")
            axes.legend(loc="upper right")


def plot_contexts(record: Record, path: Path) -> None:
    """Plot time and memory by context length."""
    lines = {
        "engine": ("this engine", OURS, "o", "-"),
        "engine, not compiled": ("this engine, not fused", OURS, "o", ":"),
        "DynamicCache": ("transformers DynamicCache", THEIRS, "s", "-"),
    }
    with drawing(path, 11, 4.6) as figure:
        for axes, key, scale, label in zip(
            figure.subplots(1, 2),
            ("median_ms", "cache_bytes"),
            (1, 2**20),
            ("ms per token, median", "keys and values in MiB"),
            strict=True,
        ):
            for name, (what, colour, marker, style) in lines.items():
                points = record["ways"].get(name, [])
                if not points or (key == "cache_bytes" and style == ":"):
                    continue
                values = [point[key] / scale for point in points]
                axes.plot(
                    [point["context"] for point in points],
                    values,
                    color=colour,
                    marker=marker,
                    linestyle=style,
                    linewidth=2,
                    label=f"{what}: {values[-1]:,.0f} at the end",
                )
            axes.set_xscale("log", base=2)
            axes.set_xticks(sorted({p["context"] for w in record["ways"].values() for p in w}))
            axes.xaxis.set_major_formatter(lambda tokens, _: f"{tokens / 1024:,.0f}K")
            axes.set_xlabel("context in tokens")
            axes.set_ylabel(label)
            axes.set_ylim(0, 1.3 * axes.get_ylim()[1])
            axes.legend(loc="upper left")
        figure.suptitle(
            f"{record['model']['name']}, budget {record['budget']}, "
            f"{_threads(record['environment']['threads'])}",
            x=0.01,
            ha="left",
            weight="bold",
            size=13,
        )


def plot_compaction(record: Record, path: Path) -> None:
    """Plot the share of decoding time that compactions take."""
    rows = record["rows"]
    with drawing(path, 10, 1.8 + 0.5 * len(rows)) as figure:
        axes = figure.subplots()
        places = range(len(rows))
        whole = [row["share_percent"] for row in rows]
        axes.barh(places, whole, color=OURS, height=0.6, label="compactions")
        targets = [row["target_percent"] for row in rows]
        axes.scatter(targets, places, color=FAINT, marker="|", s=260, label="target: at most")
        for place, share, target in zip(places, whole, targets, strict=True):
            axes.annotate(
                f"{share:.2g} %",
                (max(share, target), place),
                (7, 0),
                textcoords="offset points",
                va="center",
                bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"},
            )
        names = [f"{row['model']}: {row['policy']}" for row in rows]
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.1)
        axes.set_xlabel(f"% of the time of decoding, budget {record['budget']}")
        axes.set_title("What compactions cost")
        axes.legend(loc="best")


def plot_peers(record: Record, path: Path) -> None:
    """Plot milliseconds per token of this engine and of others."""
    rows = [row for row in record["rows"] if "failed" not in row]
    rows.sort(key=lambda row: row["ms_mean"])
    with drawing(path, 11, 1.6 + 0.42 * len(rows)) as figure:
        axes = figure.subplots()
        _bars(axes, [row["label"] for row in rows], [row["ms_mean"] for row in rows])
        axes.set_xlabel("ms per token, mean")
        axes.set_title(f"SmolLM2-135M in a cache of 512 tokens, {_threads(record['threads'])}")


def _bars(axes: Any, labels: list[str], values: list[float]) -> None:
    """Horizontal bars from the top; this package's own are of another colour."""
    places = range(len(labels))
    is_ours = [label.startswith(("engine", "LaCache", "lacache")) for label in labels]
    colours = [OURS if ours else THEIRS for ours in is_ours]
    axes.barh(places, values, color=colours, height=0.62, alpha=0.85)
    for place, value in zip(places, values, strict=True):
        axes.annotate(
            f"{value:,.1f}", (value, place), (5, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(places, labels, color=INK)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1.12 * max(values))


def _threads(number: int) -> str:
    return f"{number} thread" if number == 1 else f"{number} threads"


PLOTS = {
    "decode": plot_decode,
    "contexts": plot_contexts,
    "compaction": plot_compaction,
    "peers": plot_peers,
}


def main() -> None:
    """Draw all plots."""
    for path in sorted(RESULTS.glob("*.json")):
        name = path.stem.split("-")[0]
        if name in PLOTS:
            PLOTS[name](read_record(path), path.with_suffix(".png"))
            print(path.with_suffix(".png"))


if __name__ == "__main__":
    main()
