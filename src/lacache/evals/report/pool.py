"""Runs that differ by the seed of their samples alone, taken together."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from lacache.evals.bootstrap import mean_interval
from lacache.evals.report.run import Run


def pool_seeds(runs: Sequence[Run]) -> list[Run]:
    """One run in place of several with other seeds, with the samples of all of them.

    Two methods pool to the same samples if they were run with the same seeds. Perplexity draws
    nothing, and stays as it is; so do runs that a seed does not tell apart.
    """
    groups: dict[object, list[Run]] = defaultdict(list)
    for number, run in enumerate(runs):
        cell = run.cell
        alike = (run.setting, cell.task, cell.length, cell.count, run.method_key, run.budget)
        groups[number if run.is_ppl else alike].append(run)
    pooled: list[Run] = []
    for same in groups.values():
        seeds = {run.record["seed"] for run in same}
        if len(same) > 1 and len(seeds) == len(same):
            pooled.append(_pooled(sorted(same, key=lambda run: int(run.record["seed"]))))
        else:
            pooled += same
    return pooled


def _pooled(runs: Sequence[Run]) -> Run:
    records = [run.record for run in runs]
    samples = [sample for record in records for sample in record["samples"]]
    scores, losses = ([float(sample[name]) for sample in samples] for name in ("score", "nll"))
    capacities = [record["capacity"] for record in records]
    hashes = ",".join(record["samples_sha256"] for record in records)
    record = {
        **records[0],
        "seeds": [record["seed"] for record in records],
        "samples_sha256": hashlib.sha256(hashes.encode()).hexdigest(),
        "count": len(samples),
        "score": fmean(scores),
        "score_interval": list(mean_interval(scores)),
        "nll": fmean(losses),
        "nll_interval": list(mean_interval(losses)),
        "capacity": None if None in capacities else fmean(capacities),
        # Every run has equally many samples, so that means of means are means.
        **{
            name: fmean(record[name] for record in records)
            for name in ("peak_bytes", "mean_bytes", "full_bytes")
        },
        "samples": samples,
    }
    return Run(record, f"{runs[0].source} and {len(runs) - 1} more")
