"""One run of the harness, as its record describes it, and short labels for runs."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from lacache.common.records import Record
from lacache.evals.runs import HARNESS
from lacache.policies.budget import parse_budget

FULL = "full"
BASE = "streaming"
"""The policy that all others are compared with: StreamingLLM."""

FEWEST_DRAWS = 4
"""Least number of runs, alike but for the seed of their policy, that make one row."""

_OWN_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}
"""Bits of a number in the model's own type, for records that do not state them."""

_NAMES = {
    "full": "Full cache",
    "streaming": "StreamingLLM",
    "ladder": "Ladder",
    "ppl": "Perplexity",
}


@final
@dataclass(frozen=True)
class Setting:
    """Properties that two runs must share, besides the samples, to share a table."""

    model: str
    weights: str
    dtype: str
    kind: str
    prefill: str
    first_token: str
    kv_dtype: str | None
    """What keys and values are stored in; None is the model's own type."""
    harness: int
    """Version of the harness; figures of two versions may differ."""

    @property
    def label(self) -> str:
        """The setting as a heading."""
        measure = "perplexity" if self.kind == "ppl" else "answers"
        sources = {"dense": "dense logits", "cache": "compacted cache"}
        source = sources.get(self.first_token, self.first_token)
        first = f", first answer token from the {source}" if source else ""
        weights = f" ({self.weights[:8]})" if self.weights else ""
        harness = "" if self.harness == HARNESS else f", version {self.harness} of the harness"
        stored = f", keys and values in {self.kv_dtype}" if self.kv_dtype else ""
        return (
            f"{self.model}{weights} in {self.dtype}{stored}: {measure}, {self.prefill} prefill"
            f"{first}{harness}"
        )


@final
@dataclass(frozen=True)
class Cell:
    """A set of samples: runs of one cell are paired sample by sample."""

    task: str
    """Name and settings, as JSON with sorted keys."""
    length: int
    count: int
    seeds: tuple[int, ...]
    samples: str
    """SHA-256 of the samples."""

    @property
    def seeds_label(self) -> str:
        """The seeds in words, such as `seed 0` or `seeds 0 to 49`."""
        first, last = self.seeds[0], self.seeds[-1]
        if len(self.seeds) == 1:
            return f"seed {first}"
        if len(self.seeds) == last - first + 1:
            return f"seeds {first} to {last}"
        return f"seeds {', '.join(map(str, self.seeds))}"


@final
class Run:
    """A run with the values of its record that tables and plots use.

    Args:
        record: of kind "eval" or "ppl".
        source: file and line, for errors.
    """

    def __init__(self, record: Record, source: str) -> None:
        model, policy = record["model"], record["policy"]
        self.record, self.source = record, source
        self.is_ppl: bool = record["kind"] == "ppl"
        """Whether the run measures perplexity, where lower is better."""
        self.setting = Setting(
            model=model["name"],
            weights=str(model.get("weights_sha256") or ""),
            dtype=str(model.get("dtype") or "an unknown type"),
            kind=record["kind"],
            prefill=record["prefill"],
            first_token=(
                str(record.get("first_token") or "") if record["prefill"] == "dense" else ""
            ),
            kv_dtype=record.get("kv_dtype"),
            harness=record["harness"],
        )
        self.cell = Cell(
            task=json.dumps(record["task"], sort_keys=True),
            length=record["length"],
            count=record["count"],
            seeds=tuple(record.get("seeds", [record["seed"]])),
            samples=record["samples_sha256"],
        )
        self.policy = str(policy["name"])
        self.inputs = str(record.get("policy_inputs_sha256") or "")[:8]
        """Short hash of other inputs of the policy, such as a head profile; may be empty."""
        self.policy_key = json.dumps({**policy, "inputs": self.inputs}, sort_keys=True)
        """Name, settings and other inputs of the policy, as JSON with sorted keys."""
        self.budget = "" if self.policy == FULL else str(record["budget"])
        """As requested; empty for the full cache, which has none."""
        measure = "perplexity" if self.is_ppl else "score"
        self.value = float(record[measure])
        """Perplexity or score."""
        low, high = record[f"{measure}_interval"]
        self.interval = float(low), float(high)
        """The 95 % interval of `value`."""
        samples = record.get("samples", [])
        self.scores = [float(sample["score"]) for sample in samples]
        """The score of each sample; empty for perplexity."""
        self.losses = (
            [float(loss) for loss in record["nll"]]
            if self.is_ppl
            else [float(sample["nll"]) for sample in samples]
        )
        """Nats of each token, or of each answer."""
        self.peak_bytes, self.mean_bytes, self.full_bytes = (
            float(record[f"{name}_bytes"]) for name in ("peak", "mean", "full")
        )
        """Most bytes in the cache, their mean over time, and the bytes of a full cache at the end,
        averaged over samples; all in the type that keys and values are stored in."""
        self.kv_bits = float(record.get("kv_bits") or _OWN_BITS.get(self.setting.dtype, 0)) or None
        """Bits of a stored number of a key or value, scales included; None where unknown."""

    def far_losses(self, capacity: float) -> list[float]:
        """Return the nats of tokens that occurred last more than `capacity` tokens before."""
        distances = self.record.get("last_seen", [])
        pairs = zip(self.losses, distances, strict=True) if distances else ()
        return [loss for loss, distance in pairs if distance > capacity]

    @property
    def has_signal(self) -> bool:
        """Whether a full cache with this score leaves something to lose: half of all answers.

        A task near its floor also scores above 0, and shows nothing of the cache.
        """
        return self.value >= 0.5


def agreement(run: Run, other: Run) -> int:
    """Return how many settings of the policy of `other` that of `run` shares."""
    ours, theirs = run.record["policy"], other.record["policy"]
    return sum(ours.get(name, ...) == value for name, value in theirs.items())


def split_draws(runs: Sequence[Run]) -> tuple[list[Run], dict[str, list[Run]]]:
    """Split single runs from random draws, which differ only by the seed of their policy.

    Returns:
        The single runs, and the draws by label.
    """
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        settings = {k: v for k, v in run.record["policy"].items() if k != "seed"}
        groups[json.dumps(settings, sort_keys=True)].append(run)
    alone: list[Run] = []
    drawn: dict[str, list[Run]] = {}
    for same in groups.values():
        if len(same) < FEWEST_DRAWS:
            alone += same
            continue
        name = label = same[0].policy
        number = 2
        while label in drawn:
            label, number = f"{name} {number}", number + 1
        drawn[label] = same
    return alone, drawn


def budget_order(run: Run) -> tuple[float, str]:
    """Return a key that sorts runs by their budget, as far as budgets can be compared."""
    return (float(run.record["capacity"] or 0) if run.budget else 0.0, run.budget)


def budget_label(budget: str) -> str:
    """Return a budget in words: `25 %` (of the prompt, or of a document) or `256 tokens`."""
    if not budget:
        return "no budget"
    parsed = parse_budget(budget)
    if parsed.tokens:
        return f"{parsed.tokens:,} tokens"
    if parsed.share:
        return f"{100 * parsed.share:g} %"
    return budget


def task_labels(runs: Sequence[Run]) -> dict[str, str]:
    """Return short names for the tasks of runs by `Cell.task`, all different.

    A label is the task's name, then the settings that differ among tasks of that name or are
    strings (such as the name of a RULER task).
    """
    tasks = {run.cell.task: run.record["task"] for run in runs}
    return {
        key: _label(task, list(tasks.values()), show_strings=True) for key, task in tasks.items()
    }


def policy_labels(runs: Sequence[Run]) -> dict[str, str]:
    """Return short names for the policies of runs by `Run.policy_key`, all different.

    A label is the policy's name, then the settings that differ among policies of that name, or
    else the hash of its other inputs.
    """
    policies = {run.policy_key: run.record["policy"] for run in runs}
    inputs = {run.policy_key: run.inputs for run in runs}
    labels = {}
    for key, policy in policies.items():
        labels[key] = _label(policy, list(policies.values()), show_strings=False)
        if list(policies.values()).count(policy) > 1:
            labels[key] += f" inputs={inputs[key] or 'unknown'}"
    return labels


def _label(record: Record, records: Sequence[Record], *, show_strings: bool) -> str:
    name = str(record["name"])
    alike = [other for other in records if other["name"] == name]
    shown = []
    for key, value in record.items():
        # A setting of None is left to the policy; the labels of the others show theirs.
        if key == "name" or value is None or value == []:
            continue
        if any(other.get(key) != value for other in alike):
            shown.append(f"{key}={_compact(value)}")
        elif show_strings and isinstance(value, str) and len(value) <= 40:
            shown.append(value)
    return " ".join([_NAMES.get(name, name), *shown])


def _compact(value: Any) -> str:
    content = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return content if len(content) <= 32 else f"{content[:29]}..."
