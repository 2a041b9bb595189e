"""One pool of slots: what sharing it costs, against a region for each head group's largest.

Metric: tokens per second with regions that move over those with fixed regions, in the same process,
in turns of one cycle of compactions; the median over turns, and quartiles. `growing` is from the
first compaction on, where every compaction moves the regions; `steady` is where the windows are as
small as they get. Prefill likewise, of one prompt in turns. And the bytes that are reserved for a
sequence. At least 0.97 is the target.
"""

import json
import time
from statistics import median, quantiles
from typing import Any
from unittest.mock import patch

import torch
from _fresh import parser, results
from _steppers import EngineStepper, bind, random_tokens
from rich.console import Console

from lacache.common.records import Record, environment, write_record
from lacache.engine import runner
from lacache.evals.provenance import model_record
from lacache.models import load_model
from lacache.policies import BoundPolicy

BUDGET = 512
POLICIES = ("balanced", "recall")
TURNS = 16
PROMPT = 2048
TARGET = 0.97


def make(model: Any, bound: BoundPolicy, fill: int, *, moves: bool) -> EngineStepper:
    """Return a stepper whose regions move, or not."""
    with patch.object(runner, "shares_slots_on", lambda device: moves):
        return EngineStepper(model, bound, fill, "inductor")


def ratios(moving: list[float], fixed: list[float]) -> Record:
    """Return the speed of what took `moving` seconds in turns against `fixed`."""
    each = [b / a for a, b in zip(moving, fixed, strict=True)]
    low, _, high = quantiles(each, n=4)
    return {
        "median": round(median(each), 4),
        "quartiles": [round(low, 4), round(high, 4)],
        "is_met": median(each) >= TARGET,
    }


def decode(model: Any, bound: BoundPolicy, fill: int, turns: int) -> Record:
    """Decode in turns after `fill` tokens."""
    steppers = [make(model, bound, fill, moves=moves) for moves in (True, False)]
    cycle = max(group.schedule.evict_batch for group in bound.groups)
    took: list[list[float]] = [[], []]
    for turn in range(turns + 1):
        tokens = random_tokens(model, cycle).tolist()
        order = (0, 1) if turn % 2 else (1, 0)
        for which in order:
            milliseconds, _ = steppers[which].timed(tokens)
            took[which].append(sum(milliseconds))
    moving, fixed = (each[1:] for each in took)
    return {
        "from_token": fill,
        "turns": turns,
        "steps_of_a_turn": cycle,
        "ms_per_token": round(median(moving) / cycle, 4),
        "ms_per_token_fixed": round(median(fixed) / cycle, 4),
        "bytes_per_sequence": steppers[0].cache_bytes,
        "bytes_per_sequence_fixed": steppers[1].cache_bytes,
        **ratios(moving, fixed),
    }


def prefill(model: Any, bound: BoundPolicy, tokens: int, turns: int) -> Record:
    """Prefill one prompt in turns."""
    steppers = [make(model, bound, 1, moves=moves) for moves in (True, False)]
    prompt = random_tokens(model, tokens)
    took: list[list[float]] = [[], []]
    for turn in range(turns):
        for which in (0, 1) if turn % 2 else (1, 0):
            steppers[which].runner.cache.clear(0)
            begun = time.perf_counter()
            steppers[which].prefill(prompt)
            took[which].append(time.perf_counter() - begun)
    return {"tokens": tokens, "turns": turns, **ratios(*took)}


def main() -> None:
    """Measure every policy, write and print the record."""
    options = parser(__doc__)
    options.add_argument("--dtype", default="bfloat16")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    console = Console(stderr=True)
    loaded = load_model(dtype=given.dtype)
    turns, prompt = (2, 700) if given.quick else (TURNS, PROMPT)
    rows = []
    for name in POLICIES:
        bound = bind(loaded.model, name, BUDGET, with_profile=True)
        steady = max(group.schedule.steady_from for group in bound.groups)
        for phase, fill in (("growing", BUDGET), ("steady", steady)):
            row = {"policy": name, "phase": phase, **decode(loaded.model, bound, fill, turns)}
            rows.append(row)
            console.print(f"{name}, {phase}: {row['median']} {row['quartiles']}")
            torch.compiler.reset()
        row = {"policy": name, "phase": "prefill", **prefill(loaded.model, bound, prompt, turns)}
        rows.append(row)
        console.print(f"{name}, prefill: {row['median']} {row['quartiles']}")
        torch.compiler.reset()
    record = {
        "benchmark": "pool",
        "budget": BUDGET,
        "target": TARGET,
        "model": model_record(loaded.model, loaded.name),
        "rows": rows,
        "environment": environment(),
    }
    write_record(results(quick=given.quick) / "pool.json", record)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
