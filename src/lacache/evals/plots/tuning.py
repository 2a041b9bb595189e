"""Plot of a search for a policy: perplexity against the loss of answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lacache.common.records import Record
from lacache.errors import InputError
from lacache.evals.plots.style import CLOUD, FRONT, draw_legend, drawing, policy_styles

_FULL = "full"


def plot_tuning(record: Record, path: Path) -> None:
    """Draw both parts of the document side by side: the one chosen on, and the held-out one.

    Values are relative to StreamingLLM on the same tokens and needles, so that candidates compare
    however much of the document they were measured on. Bars are 95 % intervals.

    Args:
        record: of kind "tune".
        path: the PNG to write.

    Raises:
        InputError: the record is of another kind, or the path is not a PNG's.
        MissingExtraError: matplotlib is not installed.
    """
    if record.get("kind") != "tune":
        raise InputError(
            f"a record of kind {record.get('kind')!r} is not one of lacache tune; give the JSON "
            "that lacache tune --json prints"
        )
    rows: list[Record] = record["policies"]
    winners = [row for row in rows if row["held_out"] is not None]
    styles = policy_styles((row["name"], row["policy"]) for row in winners)
    with drawing(path, 11.5, 5.6 + 0.25 * (len(winners) // 3)) as figure:
        panels = figure.subplots(1, 2)
        for axes, part, title in zip(
            panels, ("compared", "held_out"), ("chosen on this half", "held out"), strict=True
        ):
            there = [row for row in rows if row[part] is not None]
            _panel(axes, there, part, styles)
            excerpts = max(row[part]["excerpts"] for row in there)
            axes.set_title(f"{title}: {excerpts} × {record['length']:,} tokens")
            axes.set_xlabel("loss of the answers - StreamingLLM's, in nats (lower is better)")
            axes.set_ylabel("perplexity / StreamingLLM's (lower is better)")
        figure.suptitle(
            f"{record['model']}, {record['text']}, {record['capacity']:,} tokens per layer",
            fontsize=13,
        )
        draw_legend(figure)


def _panel(axes: Any, rows: Sequence[Record], part: str, styles: dict[str, dict[str, Any]]) -> None:
    places = {row["policy"]: row[f"{part}_against"] for row in rows}
    rest = [place for policy, place in places.items() if policy not in styles]
    if rest:
        axes.scatter(
            [place["loss"] for place in rest],
            [place["ratio"] for place in rest],
            s=22,
            color=CLOUD,
            linewidths=0,
            label="other candidates",
            zorder=2,
        )
    best = [places[row["policy"]] for row in rows if row["on_front"][part]]
    best.sort(key=lambda place: (place["loss"], place["ratio"]))
    axes.step(
        [place["loss"] for place in best],
        [place["ratio"] for place in best],
        **FRONT,
        label="Pareto front",
    )
    for row in rows:
        if row["policy"] not in styles:
            continue
        place, style = places[row["policy"]], styles[row["policy"]]
        axes.errorbar(
            place["loss"],
            place["ratio"],
            xerr=_reach(place, "loss"),
            yerr=_reach(place, "ratio"),
            color=style["color"],
            marker=style["marker"],
            markersize=8,
            markeredgecolor="white",
            elinewidth=0.8,
            alpha=0.9,
            linestyle="none",
            label="full cache, for reference" if row["name"] == _FULL else row["policy"],
            zorder=3,
        )


def _reach(place: Record, name: str) -> list[list[float]]:
    """Return the lengths of the error bar below and above the value."""
    low, high = place[f"{name}_interval"]
    return [[max(0.0, place[name] - low)], [max(0.0, high - place[name])]]
