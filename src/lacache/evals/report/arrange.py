"""Sort runs into what can be compared: sections by setting, tables by samples."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any, final

from lacache.common.records import Record
from lacache.errors import InputError
from lacache.evals.intervals import mean_interval
from lacache.evals.report.run import (
    FULL,
    Cell,
    Run,
    Setting,
    budget_order,
    policy_labels,
    task_labels,
)
from lacache.evals.report.tables import Section, Table


@final
@dataclass(frozen=True)
class Report:
    """All runs of a report, sorted into sections and tables."""

    runs: Sequence[Run]
    """Runs without repeats, not pooled."""
    sections: Sequence[Section]
    notes: Sequence[str]
    """Notes on what is shown apart or was left out."""
    policies: Mapping[str, str]
    """Labels by `Run.policy_key`."""
    tasks: Mapping[str, str]
    """Labels by `Cell.task`."""

    def record(self) -> Record:
        """Return the numbers as plain JSON; an infinite end of an interval is null."""
        sections: list[Record] = [
            {
                "setting": {
                    "label": section.setting.label,
                    **asdict(section.setting),
                    "kv_bits": section.kv_bits,
                },
                "means": [asdict(row) for row in section.means],
                "tables": [
                    {
                        "label": table.label,
                        **asdict(table.cell),
                        "full": None if table.full_row is None else asdict(table.full_row),
                        "rows": [asdict(row) for rows in table.by_budget.values() for row in rows],
                    }
                    for table in section.tables
                ],
            }
            for section in self.sections
        ]
        record: Record = _finite({"sections": sections, "notes": list(self.notes)})
        return record


def arrange(runs: Sequence[Run]) -> Report:
    """Sort runs into tables that compare them.

    Raises:
        InputError: runs of the same samples cannot be paired.
    """
    newest, old = _select_newest_harness(runs)
    kept, repeats = _select_newest_repeats(newest)
    policies, tasks = policy_labels(kept), task_labels(kept)
    pooled, unfinished = _pool_seeds(kept)
    sections = _arrange(pooled, policies, tasks)
    notes = [*old, *repeats, *unfinished, *_separation_notes(sections, tasks)]
    return Report(kept, sections, notes, policies, tasks)


def _select_newest_harness(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Keep the runs of the newest harness for each configuration, and note what was left out.

    Seeds and numbers of samples do not matter: runs of two versions are never pooled.
    """

    def configuration(run: Run) -> object:
        setting = replace(run.setting, harness=0)
        return (setting, run.cell.task, run.cell.length, run.policy_key, run.budget)

    newest: dict[object, int] = defaultdict(int)
    for run in runs:
        newest[configuration(run)] = max(newest[configuration(run)], run.setting.harness)
    kept = [run for run in runs if run.setting.harness == newest[configuration(run)]]
    left_out = Counter(
        run.setting.harness for run in runs if run.setting.harness < newest[configuration(run)]
    )
    return kept, [
        f"{count} record{'s were' if count > 1 else ' was'} left out, of version {harness} of the "
        "harness: a newer version has measured the same configurations."
        for harness, count in sorted(left_out.items())
    ]


def _select_newest_repeats(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Keep the newest run for each configuration and samples, and note what was left out."""
    groups: dict[object, list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.setting, run.cell, run.policy_key, run.budget].append(run)
    kept, notes, same = [], [], 0
    for repeats in groups.values():
        newest = max(repeats, key=lambda run: str(run.record["environment"].get("time", "")))
        kept.append(newest)
        others = [run for run in repeats if run is not newest]
        differing = [run for run in others if run.value != newest.value]
        same += len(others) - len(differing)
        notes += [
            f"{run.source} and {newest.source} are runs of one configuration with different "
            f"figures, {run.value:g} and {newest.value:g}; the newer one is shown."
            for run in differing
        ]
    if same:
        notes.insert(0, f"{same} records repeat a run with the same figure, and are shown once.")
    return kept, notes


def _pool_seeds(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Pool runs that differ only by the seed of their samples into one run of all samples.

    Two policies pool to the same samples if they were run with the same seeds. The full cache is
    pooled to the seeds of each of them. Perplexity draws nothing and is not pooled, nor are runs
    that share a seed.
    """
    pooled = [run for run in runs if run.is_ppl]
    bounded: dict[object, dict[object, list[Run]]] = defaultdict(lambda: defaultdict(list))
    full: dict[object, list[Run]] = defaultdict(list)
    for run in runs:
        if run.policy == FULL and not run.is_ppl:
            full[run.setting, _any_seed(run)].append(run)
        elif not run.is_ppl:
            bounded[run.setting, _any_seed(run)][run.policy_key, run.budget].append(run)
    notes = []
    seeds: dict[object, set[tuple[int, ...]]] = defaultdict(set)
    for by_policy in bounded.values():
        unfinished = _unfinished_seed(list(by_policy.values()))
        for same in by_policy.values():
            complete = [run for run in same if run.record["seed"] != unfinished]
            pooled += (found := _pool_distinct(complete))
            seeds[_any_seed(same[0])] |= {run.cell.seeds for run in found}
        if unfinished is not None:
            one = next(iter(by_policy.values()))[0]
            notes.append(
                f"{one.setting.label}: seed {unfinished} of {one.record['task']['name']} at length "
                f"{one.cell.length:,} is left out until all policies have it."
            )
    for same in full.values():
        known = {run.record["seed"] for run in same}
        wanted = [some for some in seeds[_any_seed(same[0])] if known.issuperset(some)]
        for some in sorted(wanted) or [tuple(known)]:
            pooled += _pool_distinct([run for run in same if run.record["seed"] in some])
    return pooled, notes


def _any_seed(run: Run) -> object:
    """Return what runs of any seed and prefill share, if their samples are comparable."""
    setting = replace(run.setting, prefill="", first_token="")
    return (setting, run.cell.task, run.cell.length, run.cell.count)


def _unfinished_seed(by_policy: Sequence[Sequence[Run]]) -> int | None:
    """Return the seed of the newest record, if it is the only one that some policies lack."""
    seeds = [{int(run.record["seed"]) for run in same} for same in by_policy]
    common = set.intersection(*seeds)
    runs = [run for same in by_policy for run in same]
    newest = max(runs, key=lambda run: str(run.record["environment"]["time"])).record["seed"]
    return int(newest) if common and set.union(*seeds) - common == {newest} else None


def _pool_distinct(runs: Sequence[Run]) -> list[Run]:
    """Pool runs of one configuration if all their seeds differ."""
    if len(runs) < 2 or len({run.record["seed"] for run in runs}) < len(runs):
        return list(runs)
    return [_pool(sorted(runs, key=lambda run: int(run.record["seed"])))]


def _pool(runs: Sequence[Run]) -> Run:
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


def _arrange(
    runs: Sequence[Run], policies: Mapping[str, str], tasks: Mapping[str, str]
) -> list[Section]:
    """Sort runs without repeats into sections and tables.

    Raises:
        InputError: perplexities of the same samples with different numbers of tokens, or scores
            with different numbers of samples.
    """
    full: dict[object, list[Run]] = defaultdict(list)
    bounded: dict[Setting, dict[Cell, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run.policy == FULL:
            full[_samples(run.setting, run.cell)].append(run)
        else:
            bounded[run.setting][run.cell].append(run)
    seen = {_samples(run.setting, run.cell) for run in runs if run.policy != FULL}
    for run in runs:
        # A full cache that nothing is compared with still has a table.
        if run.policy == FULL and _samples(run.setting, run.cell) not in seen:
            bounded[run.setting][run.cell] = []
    sections = []
    for setting in sorted(bounded, key=_setting_order):
        tables = []
        cells = sorted(bounded[setting], key=_cell_order)
        for cell in cells:
            references = full[_samples(setting, cell)]
            reference = min(references, key=lambda run: run.setting != setting, default=None)
            ordered = tuple(sorted(bounded[setting][cell], key=_run_order))
            label = _table_label(cell, tasks, cells)
            table = Table(cell, label, ordered, reference, policies)
            _validate_pairs(table.all_runs)
            tables.append(table)
        sections.append(Section(setting, tuple(tables)))
    return sections


def _separation_notes(sections: Sequence[Section], tasks: Mapping[str, str]) -> list[str]:
    """Note which records look alike but are in tables of their own."""
    notes = []
    if len(sections) > 1:
        notes.append(
            f"The records are of {len(sections)} settings (model, types, measure, prefill, "
            "version of the harness), which are shown apart and not compared with each other."
        )
    for section in sections:
        alike: dict[object, list[Table]] = defaultdict(list)
        for table in section.tables:
            alike[table.cell.task, table.cell.length].append(table)
        for tables in alike.values():
            if len(tables) > 1:
                cell = tables[0].cell
                sets = "; ".join(
                    f"{t.cell.count} of {t.cell.seeds_label} ({t.cell.samples[:8]})" for t in tables
                )
                notes.append(
                    f"{section.setting.label}: the records of {tasks[cell.task]} at length "
                    f"{cell.length:,} are of {len(tables)} different sets of samples, {sets}, "
                    "which are shown apart."
                )
    return notes


def _samples(setting: Setting, cell: Cell) -> object:
    """Return what a full cache must share with bounded ones; the prefill does not matter."""
    return (replace(setting, prefill="", first_token=""), cell)


def _run_order(run: Run) -> tuple[object, ...]:
    worth = run.value if run.is_ppl else -run.value
    return (budget_order(run), worth, run.mean_bytes, run.policy_key)


def _setting_order(setting: Setting) -> tuple[object, ...]:
    # Perplexity last, and chunked prefill before a dense one.
    weights = (setting.model, setting.weights, setting.dtype, setting.kv_dtype or "")
    return (*weights, -setting.harness, setting.kind, setting.prefill, setting.first_token)


def _cell_order(cell: Cell) -> tuple[object, ...]:
    return (cell.task, cell.length, cell.seeds, cell.count, cell.samples)


def _validate_pairs(runs: Sequence[Run]) -> None:
    for run in runs[1:]:
        if len(run.losses) != len(runs[0].losses):
            raise InputError(
                f"{run.source}: {len(run.losses)} losses, and {runs[0].source} has "
                f"{len(runs[0].losses)} on samples of the same hash; one of the files is damaged, "
                "measure it again"
            )


def _table_label(cell: Cell, tasks: Mapping[str, str], cells: Sequence[Cell]) -> str:
    """Return task and length, and what else distinguishes a table from the others."""
    label = f"{tasks[cell.task]}, {cell.length:,} tokens"
    alike = [other for other in cells if (other.task, other.length) == (cell.task, cell.length)]
    if len({other.seeds for other in alike}) > 1:
        label += f", {cell.seeds_label}"
    if sum(other.seeds == cell.seeds for other in alike) > 1:
        label += f", samples {cell.samples[:8]}"
    return label


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
