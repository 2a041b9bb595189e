"""Decoding: milliseconds of one token at 512 slots, by this engine and by what else there is.

Metric: wall-clock time of a step, the choice of the likeliest token included, with the cache full
and compactions as they fall due; rounds in which every way takes its turn, in one process, over the
same weights. Means hold the periodic work, medians do not. Three things are asked of them: the
ladder's tokens per second against a plain static cache of as many slots in the same engine; the
time that memory needs, at the bandwidth of a large copy, for the weights and the keys and values
that a token reads, against the time that it takes; and both against transformers. The first two
differ by little, so ladder and plain cache meet again in many short turns, a copy before each.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from _fresh import parser, results
from _plots import plot_decode
from _steppers import (
    Copy,
    DynamicCacheStepper,
    EngineStepper,
    LaCacheStepper,
    StaticCacheStepper,
    Stepper,
    bind,
    large_model,
    random_tokens,
)
from rich.console import Console

from lacache.common.records import Record, environment, write_record
from lacache.evals.provenance import model_record
from lacache.models import load_model
from lacache.policies import BoundPolicy

SLOTS = 512
ROUNDS = 6
PAIRS = 24
LEAST_STEPS = 40
WARM_STEPS = 2
SIZES = ("small", "large")
LADDER, PLAIN = "engine: ladder", "engine: plain static cache"
TARGETS = {"ladder_against_plain": 0.97, "ladder_of_the_limit": 0.70}

Making = dict[str, Callable[[], Stepper]]


def ways(model: Any, backend: str, *, is_whole: bool) -> Making:
    """What is compared, by label.

    Args:
        model: of transformers.
        backend: of torch.compile.
        is_whole: with all that runs uncompiled, with the default policy, and with int8 states,
            whose step takes minutes to compile.
    """
    ladder = bind(model, "ladder", SLOTS)
    plain = bind(model, "streaming", SLOTS)
    full = SLOTS + 100

    def engine(
        bound: BoundPolicy, fill: int = full, backend: str | None = backend, **options: Any
    ) -> Callable[[], Stepper]:
        return lambda: EngineStepper(model, bound, fill, backend, **options)

    # The plain caches are never full. Transformers' computes all slots, whatever is in them; the
    # engine's those in use, and so it begins where a cycle of the ladder ends at as many.
    never_full = SLOTS - 100
    plain_fill = SLOTS - WARM_STEPS - SLOTS // 10
    making: Making = {
        LADDER: engine(ladder),
        PLAIN: engine(plain, plain_fill, rewinds=True),
        "engine: ladder, int8 weights": engine(ladder, weights="int8"),
        "transformers: StaticCache, compiled": lambda: StaticCacheStepper(
            model, SLOTS, never_full, backend
        ),
        "transformers: DynamicCache": lambda: DynamicCacheStepper(
            model, SLOTS - LEAST_STEPS // 2, rewinds=True
        ),
    }
    if not is_whole:
        return making
    balanced = bind(model, "balanced", SLOTS, with_profile=True)
    steady = max(group.schedule.capacity for group in balanced.groups) + 100
    return making | {
        "engine: balanced": engine(balanced, steady),
        "engine: ladder, int8 keys and values": engine(ladder, kv_dtype="int8"),
        "engine: ladder, not compiled": engine(ladder, backend=None),
        "LaCache: ladder, not compiled": lambda: LaCacheStepper(model, ladder, full),
        "transformers: StaticCache": lambda: StaticCacheStepper(model, SLOTS, never_full, None),
    }


def load(size: str) -> tuple[Any, str]:
    """A model in bfloat16, and its name."""
    if size == "large":
        return large_model(), "random Llama"
    loaded = load_model(dtype="bfloat16")
    return loaded.model, loaded.name


def cycle(stepper: Stepper, least: int) -> int:
    """Steps of a round: at least so many, and as many compactions in each round, if that can be."""
    if not isinstance(stepper, EngineStepper):
        return least
    row = stepper.runner.cache.sequences[0].copy()

    def full(group: Any) -> tuple[int, int]:
        return group.state.num_cached, group.state.cursor

    begun = [full(group) for group in row.groups]
    # A long history comes round far too late to wait for it, and compacts as often as the others.
    short = [n for n, g in enumerate(row.groups) if g.schedule.final_capacity <= SLOTS]
    for steps in range(1, 4 * least):
        row.begin()
        row.is_changing = False
        row.commit(1)
        if steps >= least and all(full(row.groups[n]) == begun[n] for n in short):
            return steps
    return least


def measure(
    model: Any,
    name: str,
    making: Making,
    given: argparse.Namespace,
    seconds: float,
    console: Console,
) -> Record:
    """Make every way, and let them take turns."""
    steppers: dict[str, Stepper] = {}
    failed: dict[str, str] = {}
    for label, make in making.items():
        begun = time.perf_counter()
        try:
            steppers[label] = make()
            steppers[label].timed([0])
        except Exception as error:
            # One that cannot run must not cost the others their record, and has no numbers in it.
            steppers.pop(label, None)
            failed[label] = f"{type(error).__name__}: {error}"
        console.print(
            f"{name}, {label}: {failed.get(label, 'ready')}, {time.perf_counter() - begun:.0f} s"
        )
    copy = Copy()
    pairs = _meet(model, steppers, copy, given, console)
    steps = {label: cycle(stepper, given.steps) for label, stepper in steppers.items()}
    tokens = random_tokens(model, WARM_STEPS + max(steps.values())).tolist()
    rounds: dict[str, list[Record]] = {label: [] for label in steppers}
    # Without what compiling took, of which nobody knows how long it is.
    until = time.perf_counter() + seconds
    bandwidths = []
    for number in range(given.rounds):
        begun = time.perf_counter()
        bandwidth = copy.bytes_per_second()
        bandwidths.append(round(bandwidth / 1e9, 3))
        # There and back, so that no way always follows the same one.
        for label in list(steppers)[:: 1 if number % 2 else -1]:
            timing = _measure_once(steppers[label], tokens[: WARM_STEPS + steps[label]], bandwidth)
            rounds[label].append(timing)
        now = time.perf_counter()
        medians = ", ".join(f"{rounds[label][-1]['median_ms']:.1f}" for label in steppers)
        console.print(f"{name}, round {number + 1} of {given.rounds}: {medians} ms")
        if now + (now - begun) > until:
            break
    rows = {label: _summary(steppers[label], rounds[label]) for label in steppers}
    return {
        "model": model_record(model, name),
        "copy_gigabytes_per_second": bandwidths,
        "ways": rows | {label: {"failed": reason} for label, reason in failed.items()},
        "pairs": pairs,
        "targets": _targets(rows, pairs),
    }


def _meet(
    model: Any,
    steppers: dict[str, Stepper],
    copy: Copy,
    given: argparse.Namespace,
    console: Console,
) -> dict[str, list[Record]]:
    """Ladder and plain cache in short turns: a cycle of the ladder's compactions each."""
    found: dict[str, list[Record]] = {LADDER: [], PLAIN: []}
    if not found.keys() <= steppers.keys():
        return found
    steps = cycle(steppers[LADDER], given.steps)
    tokens = random_tokens(model, WARM_STEPS + steps).tolist()
    for number in range(given.pairs):
        bandwidth = copy.bytes_per_second()
        for label in list(found)[:: 1 if number % 2 else -1]:
            found[label].append(_measure_once(steppers[label], tokens, bandwidth))
    means = {label: statistics.median(r["mean_ms"] for r in found[label]) for label in found}
    console.print(f"{given.pairs} pairs of {steps} steps: {means}")
    return found


def _measure_once(stepper: Stepper, tokens: list[int], bandwidth: float) -> Record:
    """Rewind, warm up with a few tokens and time the others."""
    stepper.rewind()
    stepper.timed(tokens[:WARM_STEPS])
    took, compacted = stepper.timed(tokens[WARM_STEPS:])
    limit = 1e3 * (stepper.weight_bytes + stepper.attended_bytes) / bandwidth
    others = [ms for number, ms in enumerate(took) if number not in set(compacted)]
    median = statistics.median(took)
    return {
        "median_ms": round(median, 4),
        "mean_ms": round(statistics.fmean(took), 4),
        "median_without_compaction_ms": round(statistics.median(others or took), 4),
        "limit_ms": round(limit, 4),
        "limit_over_median": round(limit / median, 4),
        "limit_over_mean": round(limit / statistics.fmean(took), 4),
        "compacted": compacted,
        "ms": [round(ms, 3) for ms in took],
    }


def _summary(stepper: Stepper, rounds: list[Record]) -> Record:
    took = [ms for one in rounds for ms in one["ms"]]
    mean = statistics.fmean(took)
    compile_seconds = stepper.compile_seconds
    return {
        "median_ms": round(statistics.median(took), 4),
        "mean_ms": round(mean, 4),
        "tokens_per_second": round(1e3 / mean, 2),
        "limit_over_median": _middle(one["limit_over_median"] for one in rounds),
        "limit_over_mean": _middle(one["limit_over_mean"] for one in rounds),
        "weight_bytes": stepper.weight_bytes,
        "attended_bytes": stepper.attended_bytes,
        "cache_bytes": stepper.cache_bytes,
        "compile_seconds": None if compile_seconds is None else round(compile_seconds, 1),
        "compactions_per_step": round(sum(len(r["compacted"]) for r in rounds) / len(took), 4),
        "rounds": rounds,
    }


def _targets(rows: Record, met: dict[str, list[Record]]) -> Record:
    """Ratios of each round, their median, and whether that reaches the target."""
    ratios = {}
    if met[LADDER]:
        pairs = list(zip(met[PLAIN], met[LADDER], strict=True))
        ratios["ladder_against_plain"] = [a["mean_ms"] / b["mean_ms"] for a, b in pairs]
        ratios["ladder_against_plain_without_compactions"] = [
            a["median_ms"] / b["median_without_compaction_ms"] for a, b in pairs
        ]
        ratios["ladder_of_the_limit"] = [r["limit_over_median"] for r in met[LADDER]]
    for label, row in rows.items():
        if LADDER in rows and label not in (LADDER, PLAIN):
            pairs = list(zip(row["rounds"], rows[LADDER]["rounds"], strict=True))
            ratios[f"ladder_against {label}"] = [a["mean_ms"] / b["mean_ms"] for a, b in pairs]
    return {
        name: {
            "value": _middle(values),
            "by_round": [round(value, 4) for value in values],
            "target": TARGETS.get(name),
            "is_met": None if name not in TARGETS else _middle(values) >= TARGETS[name],
        }
        for name, values in ratios.items()
    }


def _middle(values: Any) -> float:
    return round(statistics.median(values), 4)


def main() -> None:
    """Measure, write the record, draw it, print it."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=ROUNDS)
    options.add_argument("--pairs", type=int, default=PAIRS, help="of ladder and plain cache")
    options.add_argument("--steps", type=int, default=LEAST_STEPS, help="of a round, at least")
    options.add_argument("--models", nargs="+", default=SIZES, choices=SIZES)
    options.add_argument("--backend", default="inductor", help="of torch.compile")
    options.add_argument("--minutes", type=float, default=8.0, help="of all rounds, at most")
    given = options.parse_args()
    if given.quick:
        given.rounds, given.pairs, given.steps = 2, 2, 4
    folder = results(quick=given.quick)
    console = Console(stderr=True)
    torch.set_num_threads(given.threads)
    begun = time.perf_counter()
    found = []
    for size in given.models:
        model, name = load(size)
        seconds = 60 * given.minutes / len(given.models)
        making = ways(model, given.backend, is_whole=size == "small")
        found.append(measure(model, name, making, given, seconds, console))
        torch.compiler.reset()
    record = {
        "benchmark": "decode",
        "slots": SLOTS,
        "steps_least": given.steps,
        "backend": given.backend,
        "copy_bytes": Copy.NUM_BYTES,
        "models": found,
        "environment": environment(),
    }
    write_record(folder / "decode.json", record)
    plot_decode(record, folder / "decode.png")
    for one in found:
        for label, target in one["targets"].items():
            console.print(f"{one['model']['name']}: {label} {target['value']}", target["target"])
    console.print(f"{time.perf_counter() - begun:.0f} s; {folder / 'decode.json'}")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
