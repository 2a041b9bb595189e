"""Contexts: the time of one token, and the memory, after 1K to 32K tokens.

Metric: wall-clock time of a decode step, greedy choice included, after so many tokens: of this
engine at a budget of 512 tokens per layer, at the place of its schedule where that many bring it
(`endless.py` really reads a million), and of transformers' DynamicCache, filled with as many
random keys and values. The engine runs compiled, as it is meant to, and not compiled, as a dynamic
cache must. Rounds in turns, in one process.
"""

import itertools
import json
import statistics
import time

import torch
from _fresh import parser, results
from _plots import plot_contexts
from _steppers import DynamicCacheStepper, EngineStepper, Stepper, bind, random_tokens
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from lacache.cache.static.sequence_tensors import SequenceTensors
from lacache.common.records import Record, environment, write_record
from lacache.evals.provenance import model_record
from lacache.models import load_model
from lacache.policies.schedule import Timetable

BUDGET = 512
CONTEXTS = (1_024, 4_096, 16_384, 32_768)
ROUNDS = 3
STEPS = 50
"""Compactions of this ladder come round again after 50 tokens."""
STEPS_OF_THEIRS = 30
WARM_STEPS = 2
THEIRS = "DynamicCache"


def states_at(
    reader: EngineStepper, tokens: Tensor, contexts: list[int]
) -> dict[int, SequenceTensors]:
    """What the engine holds after about so many tokens, without reading them all.

    It reads as many as the first context has. Later on it would hold other tokens, which a clock
    does not see, as many and at the same place of the schedule: only the count of tokens differs.
    """
    row = reader.runner.cache.sequences[0]
    reader.prefill(tokens[: contexts[0]])
    timetable = Timetable(row.groups[0].schedule)
    here = timetable.state_at(contexts[0])
    read = reader.state()
    states = {contexts[0]: read}
    for context in contexts[1:]:
        seen = next(n for n in itertools.count(context) if timetable.state_at(n)[1:] == here[1:])
        counts = read["group.0.counts"].clone()
        counts[0] = seen
        states[context] = read | {"group.0.counts": counts}
    return states


def main() -> None:
    """Measure, write the record, draw it, print it."""
    options = parser(__doc__)
    options.add_argument("--backend", default="inductor", help="of torch.compile")
    options.add_argument("--rounds", type=int, default=ROUNDS)
    given = options.parse_args()
    rounds, steps, contexts = given.rounds, STEPS, list(CONTEXTS)
    if given.quick:
        rounds, steps, contexts = 1, 4, [1_024, 2_048]
    torch.set_num_threads(given.threads)
    begun = time.perf_counter()
    loaded = load_model(dtype="bfloat16")
    model = loaded.model
    bound = bind(model, "ladder", BUDGET)
    ours = {
        "engine": EngineStepper(model, bound, 0, given.backend),
        "engine, not compiled": EngineStepper(model, bound, 0, None),
    }
    tokens = random_tokens(model, contexts[-1])
    console = Console(stderr=True)
    with Progress(console=console) as progress:
        reader = ours["engine, not compiled"]
        states = states_at(reader, tokens, contexts)
        task = progress.add_task("rounds", total=rounds * len(contexts) * (len(ours) + 1))
        found: dict[str, dict[int, Record]] = {name: {} for name in (*ours, THEIRS)}
        theirs = {c: DynamicCacheStepper(model, c, rewinds=False) for c in contexts}
        for _ in range(rounds):
            for context in contexts:
                turns: dict[str, Stepper] = {THEIRS: theirs[context]}
                for name, stepper in ours.items():
                    stepper.go_to(states[context])
                    turns[name] = stepper
                for name, stepper in turns.items():
                    stepper.timed(tokens[:WARM_STEPS].tolist())
                    number = min(steps, STEPS_OF_THEIRS) if name == THEIRS else steps
                    took, _ = stepper.timed(tokens[:number].tolist())
                    point = found[name].setdefault(
                        context, {"context": context, "cache_bytes": 0, "rounds": []}
                    )
                    point["cache_bytes"] = max(point["cache_bytes"], stepper.cache_bytes)
                    point["rounds"].append([round(ms, 3) for ms in took])
                    progress.advance(task)
                    progress.console.print(
                        f"{name} after {context:,}: {statistics.median(took):.1f} ms"
                    )
    ways = {name: [_summed(points[c]) for c in sorted(points)] for name, points in found.items()}
    record = {
        "benchmark": "contexts",
        "model": model_record(model, loaded.name),
        "budget": BUDGET,
        "policy": str(bound.policy),
        "backend": given.backend,
        "compile_seconds": round(ours["engine"].compile_seconds or 0.0, 1),
        "ways": ways,
        "theirs_over_ours": _ratios(ways),
        "environment": environment(),
    }
    folder = results(quick=given.quick)
    write_record(folder / "contexts.json", record)
    plot_contexts(record, folder / "contexts.png")
    console.print(f"{time.perf_counter() - begun:.0f} s; {folder / 'contexts.json'}")
    print(json.dumps(record))


def _summed(point: Record) -> Record:
    took = [ms for one in point["rounds"] for ms in one]
    return {
        "context": point["context"],
        "median_ms": round(statistics.median(took), 4),
        "mean_ms": round(statistics.fmean(took), 4),
        "cache_bytes": point["cache_bytes"],
        "rounds": point["rounds"],
    }


def _ratios(ways: dict[str, list[Record]]) -> list[Record]:
    """By context: time and memory of the DynamicCache over the engine's."""
    theirs = {point["context"]: point for point in ways[THEIRS]}
    return [
        {
            "context": point["context"],
            "mean_ms": round(theirs[point["context"]]["mean_ms"] / point["mean_ms"], 3),
            "median_ms": round(theirs[point["context"]]["median_ms"] / point["median_ms"], 3),
            "cache_bytes": round(theirs[point["context"]]["cache_bytes"] / point["cache_bytes"], 3),
        }
        for point in ways["engine"]
    ]


if __name__ == "__main__":
    main()
