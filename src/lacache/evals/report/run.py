"""One run of the harness, read from its record."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from lacache.common.records import Record
from lacache.evals.runs import HARNESS
from lacache.policies.budget import parse_budget

FULL = "full"
BASE = "streaming"
"""The method that all others are compared with: StreamingLLM."""


@final
@dataclass(frozen=True)
class Setting:
    """What must agree, besides the samples, before two runs may share a table."""

    model: str
    weights: str
    dtype: str
    kind: str
    protocol: str
    first_token: str
    harness: int
    """Version of the harness: another one may give other figures."""

    @property
    def label(self) -> str:
        """For a heading."""
        what = "perplexity" if self.kind == "ppl" else "answers"
        first = {"dense": "dense logits", "cache": "compacted cache"}
        known = first.get(self.first_token, self.first_token)
        dense = f", first answer token from the {known}" if known else ""
        weights = f" ({self.weights[:8]})" if self.weights else ""
        harness = "" if self.harness == HARNESS else f", version {self.harness} of the harness"
        return (
            f"{self.model}{weights} in {self.dtype}: {what}, {self.protocol} protocol{dense}"
            f"{harness}"
        )


@final
@dataclass(frozen=True)
class Cell:
    """The samples that were asked: runs of one cell are paired sample by sample."""

    task: str
    """Name and settings, as JSON with sorted keys."""
    length: int
    count: int
    seeds: tuple[int, ...]
    samples: str
    """SHA-256 of the samples."""

    @property
    def seeds_label(self) -> str:
        """Such as `seed 0` or `seeds 0 to 49`."""
        first, last = self.seeds[0], self.seeds[-1]
        if len(self.seeds) == 1:
            return f"seed {first}"
        if len(self.seeds) == last - first + 1:
            return f"seeds {first} to {last}"
        return f"seeds {', '.join(map(str, self.seeds))}"


@final
@dataclass(frozen=True)
class Run:
    """A record with names for what the tables ask for."""

    record: Record
    source: str
    """File and line, for errors."""

    @property
    def is_ppl(self) -> bool:
        """Whether this measures perplexity, where less is better."""
        return bool(self.record["kind"] == "ppl")

    @property
    def setting(self) -> Setting:
        """Model and protocol."""
        model = self.record["model"]
        dense = self.record["protocol"] == "dense"
        return Setting(
            model=model["name"],
            weights=str(model.get("weights_sha256") or ""),
            dtype=str(model.get("dtype") or "an unknown type"),
            kind=self.record["kind"],
            protocol=self.record["protocol"],
            first_token=str(self.record.get("first_token") or "") if dense else "",
            harness=self.record["harness"],
        )

    @property
    def cell(self) -> Cell:
        """The samples."""
        record = self.record
        return Cell(
            task=json.dumps(record["task"], sort_keys=True),
            length=record["length"],
            count=record["count"],
            seeds=tuple(record.get("seeds", [record["seed"]])),
            samples=record["samples_sha256"],
        )

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.record["method"]["name"])

    @property
    def inputs(self) -> str:
        """Short hash of what else decides what the method keeps, such as a profile, if any."""
        return str(self.record.get("method_inputs_sha256") or "")[:8]

    @property
    def method_key(self) -> str:
        """Name, settings and other inputs, as JSON with sorted keys."""
        return json.dumps({**self.record["method"], "inputs": self.inputs}, sort_keys=True)

    @property
    def budget(self) -> str:
        """As it was asked for; nothing for the full cache, which has none."""
        return "" if self.method == FULL else str(self.record["budget"])

    @property
    def value(self) -> float:
        """Score, or perplexity."""
        return float(self.record["perplexity" if self.is_ppl else "score"])

    @property
    def interval(self) -> tuple[float, float]:
        """Of `value`, 95 %."""
        name = "perplexity_interval" if self.is_ppl else "score_interval"
        low, high = self.record[name]
        return float(low), float(high)

    @property
    def losses(self) -> list[float]:
        """Nats: of each answer, or of each token."""
        if self.is_ppl:
            return [float(value) for value in self.record["nll"]]
        return [float(sample["nll"]) for sample in self.record["samples"]]

    def far_losses(self, capacity: float) -> list[float]:
        """Nats of the tokens that followed the same token last more than `capacity` tokens ago."""
        distances = self.record.get("last_seen", [])
        pairs = zip(self.losses, distances, strict=True) if distances else ()
        return [loss for loss, distance in pairs if distance > capacity]

    @property
    def scores(self) -> list[float]:
        """Of each sample; none for perplexity."""
        return [float(sample["score"]) for sample in self.record.get("samples", [])]

    @property
    def peak_bytes(self) -> float:
        """Most that the cache held, averaged over samples."""
        return float(self.record["peak_bytes"])

    @property
    def mean_bytes(self) -> float:
        """What the cache held, averaged over time and samples."""
        return float(self.record["mean_bytes"])

    @property
    def full_bytes(self) -> float:
        """What a full cache holds at the end, averaged over samples."""
        return float(self.record["full_bytes"])

    @property
    def has_signal(self) -> bool:
        """Whether a full cache with this score leaves something to lose.

        Half of all: a task near its floor is above 0 too, and says nothing of the cache.
        """
        return self.value >= 0.5


def budget_order(run: Run) -> tuple[float, str]:
    """Sorts runs by their budget, as far as budgets can be compared."""
    return (float(run.record["capacity"] or 0) if run.budget else 0.0, run.budget)


def budget_label(budget: str) -> str:
    """Such as `25 %` (of the prompt, or of a text for perplexity) or `256 tokens`."""
    if not budget:
        return "no budget"
    parsed = parse_budget(budget)
    if parsed.tokens:
        return f"{parsed.tokens:,} tokens"
    if parsed.share:
        return f"{100 * parsed.share:g} %"
    return budget


def task_labels(runs: Sequence[Run]) -> dict[str, str]:
    """Short names for the tasks of `runs`, all different.

    A task's name, and after it those of its settings that differ among tasks of that name, or that
    are texts (such as which of RULER's tasks it is).
    """
    tasks = {run.cell.task: run.record["task"] for run in runs}
    return {key: _short(task, list(tasks.values()), show_texts=True) for key, task in tasks.items()}


def method_labels(runs: Sequence[Run]) -> dict[str, str]:
    """Short names for the methods of `runs`, all different.

    The name, and after it those of its settings that differ among methods of that name, or else
    what other inputs it had.
    """
    methods = {run.method_key: run.record["method"] for run in runs}
    inputs = {run.method_key: run.inputs for run in runs}
    labels = {}
    for key, method in methods.items():
        labels[key] = _short(method, list(methods.values()), show_texts=False)
        if list(methods.values()).count(method) > 1:
            labels[key] += f" inputs={inputs[key] or 'unknown'}"
    return labels


_NAMES = {
    "full": "Full cache",
    "streaming": "StreamingLLM",
    "ladder": "Ladder",
    "ppl": "Perplexity",
}


def _short(thing: Record, things: Sequence[Record], *, show_texts: bool) -> str:
    alike = [other for other in things if other["name"] == thing["name"]]
    shown = []
    for name, value in thing.items():
        # What is None is left to the method, and telling the others is enough.
        if name == "name" or value is None or value == []:
            continue
        differs = any(other.get(name) != value for other in alike)
        if differs or name == thing["name"]:
            # "preset local" says as much as "preset preset=local".
            shown.append(_compact(value) if name == thing["name"] else f"{name}={_compact(value)}")
        elif show_texts and isinstance(value, str) and len(value) <= 40:
            shown.append(value)
    name = str(thing["name"])
    return " ".join([_NAMES.get(name, name), *shown])


def _compact(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return text if len(text) <= 32 else f"{text[:29]}..."
