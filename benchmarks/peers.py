"""Peers: milliseconds of one token of other engines, each measured in an environment of its own.

Their code is not here, nor what builds it. Scripts of one's own run them and this engine in turns,
and print a JSON object a run: `label`; `weights`, bfloat16 or int8, or what is nearest to one of
them; `ms_mean` and `ms_median` of the tokens of that run; `tokens`, `versions` and `notes`. This
takes medians over the runs of a label, and compares each peer with this engine at the same weights.

    python benchmarks/peers.py results.jsonl
"""

import argparse
import json
import statistics
from pathlib import Path

from _fresh import RESULTS
from _plots import plot_peers
from rich.console import Console

from lacache.common.records import Record, environment, write_record

OURS, OURS_INT8 = "engine: ladder", "engine: ladder, int8 weights"
TARGETS = {"released LaCache": 5.0, "kvpress": 3.0, "llama.cpp": 1.0}
"""By how a peer's label begins: its milliseconds over ours, at least."""


def summed(label: str, runs: list[Record]) -> Record:
    """One row of several runs."""
    newest = runs[-1]
    return {
        "label": label,
        "weights": newest["weights"],
        "ms_mean": round(statistics.median(run["ms_mean"] for run in runs), 3),
        "ms_median": round(statistics.median(run["ms_median"] for run in runs), 3),
        "ms_mean_runs": [run["ms_mean"] for run in runs],
        "tokens_per_run": newest["tokens"],
        "versions": newest["versions"],
        "notes": newest["notes"],
    }


def compared(row: Record, rows: dict[str, Record]) -> Record:
    """A peer's row, with its time over ours at the same precision."""
    ours = {"bfloat16": OURS, "int8": OURS_INT8}[row["weights"]]
    target = next((TARGETS[begin] for begin in TARGETS if row["label"].startswith(begin)), None)
    ratio = row["ms_mean"] / rows[ours]["ms_mean"]
    return row | {
        "against": ours,
        "theirs_over_ours": round(ratio, 3),
        "target": target,
        "is_met": None if target is None else ratio >= target,
    }


def main() -> None:
    """Make the record and draw it."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("lines", type=Path)
    given = options.parse_args()
    runs: dict[str, list[Record]] = {}
    for line in given.lines.read_text(encoding="utf-8").splitlines():
        run = json.loads(line)
        runs.setdefault(run["label"], []).append(run)
    rows = {label: summed(label, found) for label, found in runs.items()}
    if missing := {OURS, OURS_INT8} - rows.keys():
        raise SystemExit(f"error: {given.lines} has no run of {', '.join(missing)}; add one")
    ours = [rows.pop(label) for label in (OURS, OURS_INT8)]
    by_label = {row["label"]: row for row in ours}
    record = {
        "benchmark": "peers",
        "threads": 1,
        "rows": ours + [compared(row, by_label) for row in rows.values()],
        # Of the machine that read the lines; what each was run with stands in its row.
        "environment": environment(),
    }
    write_record(RESULTS / "peers.json", record)
    plot_peers(record, RESULTS / "peers.png")
    console = Console(stderr=True)
    for row in record["rows"]:
        console.print(row["label"], row["ms_mean"], row.get("theirs_over_ours", ""))
    print(json.dumps(record))


if __name__ == "__main__":
    main()
