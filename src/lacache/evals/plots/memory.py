"""Bytes in the cache by tokens seen."""

from collections.abc import Sequence
from pathlib import Path

from lacache.common.records import Record
from lacache.evals.compare import validate_same_text
from lacache.evals.plots.drawing import drawing
from lacache.evals.plots.lines import about, styled

_MIB = 2**20


def plot_memory(records: Sequence[Record], path: Path) -> None:
    """Draw the bytes that each cache holds by tokens seen.

    Raises:
        InputError: no runs, records of another kind, or on different tokens.
        MissingExtraError: matplotlib is not installed.
    """
    validate_same_text(records)
    tokens = records[0]["length"]
    with drawing(path, 10, 5) as figure:
        axes = figure.subplots()
        for record, style in styled(records):
            axes.plot(
                [0, *(seen for seen, _, _ in record["trace"])],
                [0, *(num_bytes / _MIB for _, _, num_bytes in record["trace"])],
                **style,
                label=f"{record['label']}: at most {record['peak_bytes'] / _MIB:,.1f} MiB",
            )
        peaks = [r["peak_bytes"] for r in records]
        most, least = max(peaks), min(peaks)
        name = next(r["label"] for r in records if r["peak_bytes"] == most)
        axes.set_title(f"Bytes in the cache ({about(records[0])})")
        if most > 1.5 * least:
            axes.text(
                0.97,
                0.4,
                f"{name} at the end: {most / least:,.1f} times the smallest",
                transform=axes.transAxes,
                ha="right",
            )
        axes.set_xlabel("tokens seen")
        axes.set_ylabel("cache in MiB")
        axes.set_xlim(0, tokens)
        axes.set_ylim(0, None)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend(loc="upper left")
