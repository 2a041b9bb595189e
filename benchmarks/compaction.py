"""Compaction: its share of the time of decoding, and what many head groups cost.

Metric: seconds inside the static cache's compactions over seconds of all steps, in per cent, while
the engine decodes with full caches and compacts as often as it does in the long run. At most 2 is
the target, and 5 with evict_batch 1, which compacts before every token. And tokens per second of
every policy over one ladder's; the target of the default policy, with its head groups, is 0.97.
Policies take turns of a few cycles of compactions; medians. The default model's weights are as in
its file; beside it a random Llama of 0.43 billion weights, and --model.
"""

import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any, final

import torch
from _fresh import parser, results
from _plots import plot_compaction
from _steppers import EngineStepper, bind, large_model, random_tokens
from rich.console import Console

from lacache.common.records import Record, environment, write_record
from lacache.evals.provenance import model_record
from lacache.models import load_model
from lacache.policies import DEFAULT_POLICY

BUDGET = 512
LADDER = "ladder"
POLICIES = (LADDER, DEFAULT_POLICY, "streaming", "ladder:evict_batch=1", "paper")
TARGET_PERCENT, TARGET_PERCENT_ONE_BY_ONE = 2.0, 5.0
STEPS = 102
"""Two cycles of the ladder's compactions a turn, or more."""


@final
class Clock:
    """Adds up the seconds of all calls of a function."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time noted."""

        def call(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - begun

        return call


def measure(model: Any, name: str, steps: int, turns: int, console: Console) -> list[Record]:
    """Decode with every policy in turns, with full caches."""
    steppers, clocks = {}, {}
    for policy in POLICIES:
        bound = bind(model, policy, BUDGET, with_profile=True)
        fill = max(group.schedule.capacity for group in bound.groups) + 100
        stepper = steppers[policy] = EngineStepper(model, bound, fill, None, kernels=True)
        if not stepper.runner.fused:
            raise RuntimeError(f"the steps of {name} are not fused")
        cache, clocks[policy] = stepper.runner.cache, Clock()
        # Only this object: nothing else sees the clock.
        vars(cache)["_compact"] = clocks[policy].timed(cache._compact)
        stepper.timed([0, 0])
    shares: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    taken: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    compacted = dict.fromkeys(POLICIES, 0)
    for turn in range(turns):
        for policy, stepper in steppers.items():
            clocks[policy].seconds = 0.0
            took, with_compactions = stepper.timed(random_tokens(model, steps).tolist())
            taken[policy].append(sum(took) / steps)
            shares[policy].append(100 * 1e3 * clocks[policy].seconds / sum(took))
            compacted[policy] += len(with_compactions)
        console.print(f"{name}: turn {turn + 1} of {turns}")
    rows = []
    for policy, stepper in steppers.items():
        bound = stepper.runner.layout.bound
        one_by_one = policy in ("paper", "ladder:evict_batch=1")
        target = TARGET_PERCENT_ONE_BY_ONE if one_by_one else TARGET_PERCENT
        share = median(shares[policy])
        speeds = (a / b for a, b in zip(taken[LADDER], taken[policy], strict=True))
        rows.append(
            {
                "model": name,
                "policy": policy,
                "settings": str(bound.policy),
                "groups": len(bound.groups),
                "tokens": steps * turns,
                "steps_with_compactions": compacted[policy],
                "ms_per_token": round(median(taken[policy]), 4),
                "speed_over_ladder": round(median(speeds), 4),
                "share_percent": round(share, 3),
                "shares_percent": [round(each, 3) for each in shares[policy]],
                "target_percent": target,
                "is_met": share <= target,
            }
        )
    return rows


def main() -> None:
    """Measure every policy with all models, write the record, draw it, print it."""
    options = parser(__doc__)
    options.add_argument("--turns", type=int, default=7)
    options.add_argument("--model", help="a GGUF file to measure besides")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    console = Console(stderr=True)
    begun = time.perf_counter()
    steps, turns = (20, 1) if given.quick else (STEPS, given.turns)
    loaded = [load_model(weights="file")]
    if given.model is not None:
        loaded.append(load_model(given.model, threads=given.threads, weights="file"))
    models: list[tuple[Any, str]] = [(each.model, each.name) for each in loaded]
    if not given.quick:
        models.insert(1, (large_model(), "random Llama"))
    rows = [row for model, name in models for row in measure(model, name, steps, turns, console)]
    record = {
        "benchmark": "compaction",
        "budget": BUDGET,
        "models": [model_record(model, name) for model, name in models],
        "rows": rows,
        "environment": environment(),
    }
    folder = results(quick=given.quick)
    write_record(folder / "compaction.json", record)
    plot_compaction(record, folder / "compaction.png")
    console.print(f"{time.perf_counter() - begun:.0f} s; {folder / 'compaction.json'}")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
