"""Runs sorted into what can be compared: sections by setting, tables by samples."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

from lacache.errors import InputError
from lacache.evals.report.run import BASE, FULL, Cell, Run, Setting, budget_order


@final
@dataclass(frozen=True)
class Table:
    """Runs of the same samples under one setting, sorted by budget and then the best first."""

    cell: Cell
    runs: tuple[Run, ...]
    """Of bounded caches."""
    full: Run | None
    """The full cache on the same samples. It keeps everything under every protocol, so where it
    was not run under this one, that of another is taken."""

    def base(self, run: Run) -> Run | None:
        """StreamingLLM at the budget of `run`, the one with the most like settings; if there is."""
        same = [r for r in self.runs if r.method == BASE and r.budget == run.budget]
        if not same or run.method in (BASE, FULL):
            return None
        ours = run.record["method"]

        def agreement(other: Run) -> int:
            theirs = other.record["method"]
            return sum(ours.get(name, ...) == value for name, value in theirs.items())

        return max(same, key=agreement)

    @property
    def budgets(self) -> list[str]:
        """From small to large."""
        return list(dict.fromkeys(run.budget for run in self.runs))


@final
@dataclass(frozen=True)
class Section:
    """All tables of one setting. Numbers of two sections are not compared with each other."""

    setting: Setting
    tables: tuple[Table, ...]


def of_newest_harness(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Of runs of the same configuration those of the newest harness, and what was left out.

    Whatever the seed and the number of samples: runs of two versions are never taken together.
    """

    def configuration(run: Run) -> object:
        setting = replace(run.setting, harness=0)
        return (setting, run.cell.task, run.cell.length, run.method_key, run.budget)

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


def without_repeats(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The newest of runs of the same configuration on the same samples, and what was left out."""
    groups: dict[object, list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.setting, run.cell, run.method_key, run.budget].append(run)
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


def arrange(runs: Sequence[Run]) -> list[Section]:
    """Sort runs without repeats into sections and tables.

    Raises:
        InputError: perplexities of the same samples with different numbers of tokens, or scores
            with different numbers of samples.
    """
    full: dict[object, list[Run]] = defaultdict(list)
    bounded: dict[Setting, dict[Cell, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run.method == FULL:
            full[_samples(run.setting, run.cell)].append(run)
        else:
            bounded[run.setting][run.cell].append(run)
    seen = {_samples(run.setting, run.cell) for run in runs if run.method != FULL}
    for run in runs:
        # A full cache that nothing is compared with still has a table.
        if run.method == FULL and _samples(run.setting, run.cell) not in seen:
            bounded[run.setting][run.cell] = []
    sections = []
    for setting in sorted(bounded, key=_setting_order):
        tables = []
        for cell in sorted(bounded[setting], key=_cell_order):
            found = bounded[setting][cell]
            references = full[_samples(setting, cell)]
            references = sorted(references, key=lambda run: run.setting != setting)
            table = Table(cell, tuple(_sorted(found)), references[0] if references else None)
            _validate_pairs([*table.runs, *references[:1]])
            tables.append(table)
        sections.append(Section(setting, tuple(tables)))
    return sections


def apart(sections: Sequence[Section], tasks: Mapping[str, str]) -> list[str]:
    """Which records look alike and are not, so that they stand in tables of their own."""
    notes = []
    if len(sections) > 1:
        notes.append(
            f"The records are of {len(sections)} settings (model, numbers, measure, protocol, "
            "version of the harness), which are shown apart and not compared with each other."
        )
    for section in sections:
        alike: dict[object, list[Table]] = defaultdict(list)
        for table in section.tables:
            alike[table.cell.task, table.cell.length].append(table)
        for tables in alike.values():
            if len(tables) > 1:
                cell = tables[0].cell
                told = "; ".join(
                    f"{t.cell.count} of {t.cell.seeds_label} ({t.cell.samples[:8]})" for t in tables
                )
                notes.append(
                    f"{section.setting.label}: the records of {tasks[cell.task]} at length "
                    f"{cell.length:,} are of {len(tables)} different sets of samples, {told}, "
                    "which are shown apart."
                )
    return notes


def _samples(setting: Setting, cell: Cell) -> object:
    """What a full cache must share with bounded ones; it keeps everything in every protocol."""
    return (replace(setting, protocol="", first_token=""), cell)


def _sorted(runs: Iterable[Run]) -> list[Run]:
    return sorted(
        runs,
        key=lambda run: (
            budget_order(run),
            run.value if run.is_ppl else -run.value,
            run.mean_bytes,
            run.method_key,
        ),
    )


def _setting_order(setting: Setting) -> tuple[object, ...]:
    # Perplexity last, and the strict protocol first.
    strict = "" if setting.protocol == "strict" else setting.protocol
    weights = (setting.model, setting.weights, setting.dtype)
    return (*weights, -setting.harness, setting.kind, strict, setting.first_token)


def _cell_order(cell: Cell) -> tuple[str, int, tuple[int, ...], int, str]:
    return (cell.task, cell.length, cell.seeds, cell.count, cell.samples)


def _validate_pairs(runs: Sequence[Run]) -> None:
    for run in runs[1:]:
        if len(run.losses) != len(runs[0].losses):
            raise InputError(
                f"{run.source}: {len(run.losses)} losses, and {runs[0].source} has "
                f"{len(runs[0].losses)} on samples of the same hash; one of the files is damaged, "
                "measure it again"
            )
