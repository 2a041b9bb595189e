"""Compaction: its share of the time of decoding, and how much of it is rotation.

Metric: seconds inside the static cache's compactions over seconds of all steps, in per cent, while
the engine decodes with full caches and compacts as often as it does in the long run; and seconds of
rotating keys to their new slots, tables included, likewise. Decoding is compiled, and compactions
run by the kernels. At most 2 is the target. The paper's ladder with evict_batch 1 compacts before
every token: the worst case.
"""

import json
import time
from collections.abc import Callable
from typing import Any, final

import torch
from _fresh import parser, results
from _plots import plot_compaction
from _steppers import EngineStepper, bind, large_model, random_tokens
from rich.console import Console

from lacache.common.records import Record, environment, write_record
from lacache.evals.provenance import model_record
from lacache.models import load_model
from lacache.models.fingerprint import model_profile
from lacache.models.model_info import model_info
from lacache.policies import BoundPolicy

BUDGET = 512
TARGET_PERCENT = 2.0
STEPS = 204
"""Whole cycles of what decides: about four of the ladder's 50 tokens, four of a batch of 51."""


@final
class Clock:
    """Adds up the seconds of all calls of some functions."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.calls = 0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time noted."""

        def call(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - begun
                self.calls += 1

        return call


def policies(model: Any) -> dict[str, BoundPolicy]:
    """Return the measured policies of a model, by label."""
    found = {f"one ladder, evict_batch {BUDGET // 10}": bind(model, "ladder", BUDGET)}
    if model_profile(model) is not None:
        # Without a profile both are the ladder above.
        for name in ("balanced", "recall"):
            found[name] = bind(model, name, BUDGET, with_profile=True)
    is_default = len(model_info(model).num_heads) == 30
    paper = "paper: S 15, O 0, evict_batch 1" if is_default else "paper"
    return found | {paper: bind(model, "paper", BUDGET)}


def measure(model: Any, bound: BoundPolicy, steps: int, backend: str) -> Record:
    """Decode some tokens with full caches."""
    groups = bound.groups
    fill = max(group.schedule.capacity for group in groups) + 100
    stepper = EngineStepper(model, bound, fill, backend)
    cache = stepper.runner.cache
    compacting, rotating = Clock(), Clock()
    # Only these objects: what they call is theirs, and nothing else sees the clocks.
    vars(cache)["_compact"] = compacting.timed(cache._compact)
    rotations = {id(heads.rotations): heads.rotations for heads in cache.all_kv_heads()}
    for one in rotations.values():
        if one is not None:
            vars(one)["tables"] = rotating.timed(one.tables)
    vars(cache.ops)["rotate"] = rotating.timed(cache.ops.rotate)
    stepper.timed([0, 0])
    before = stepper.compactions
    compacting.seconds = rotating.seconds = 0.0
    took, compacted = stepper.timed(random_tokens(model, steps).tolist())
    seconds = sum(took) / 1e3
    return {
        "groups": len(groups),
        "slots_computed": sum(g.schedule.capacity * g.num_heads for g in groups),
        "tokens": steps,
        "ms_per_token": round(1e3 * seconds / steps, 4),
        "compactions_of_groups": stepper.compactions - before,
        "steps_with_compactions": len(compacted),
        "ms_per_step_with_compactions": round(1e3 * compacting.seconds / max(1, len(compacted)), 4),
        "share_percent": round(100 * compacting.seconds / seconds, 3),
        "rotation_share_percent": round(100 * rotating.seconds / seconds, 3),
        "rotation_of_compaction_percent": round(100 * rotating.seconds / compacting.seconds, 2),
        "is_met": 100 * compacting.seconds / seconds <= TARGET_PERCENT,
        "compile_seconds": None
        if stepper.compile_seconds is None
        else round(stepper.compile_seconds, 1),
    }


def main() -> None:
    """Measure every policy with both models, write the record, draw it, print it."""
    options = parser(__doc__)
    options.add_argument("--backend", default="inductor", help="of torch.compile")
    options.add_argument("--steps", type=int, default=STEPS)
    options.add_argument("--small", action="store_true", help="with the default model alone")
    given = options.parse_args()
    backend = None if given.backend == "none" else given.backend
    torch.set_num_threads(given.threads)
    console = Console(stderr=True)
    begun = time.perf_counter()
    loaded = load_model(dtype="bfloat16")
    models: list[tuple[Any, str]] = [(loaded.model, loaded.name)]
    if not (given.small or given.quick):
        models.append((large_model(), "random Llama"))
    rows = []
    for model, name in models:
        for label, bound in policies(model).items():
            steps = 60 if given.quick else given.steps
            row = measure(model, bound, steps, backend)
            rows.append({"model": name, "policy": label, "settings": str(bound.policy), **row})
            console.print(
                f"{name}, {label}: {row['share_percent']} % compaction, "
                f"{row['rotation_share_percent']} % rotation, {row['ms_per_token']} ms"
            )
            torch.compiler.reset()
    record = {
        "benchmark": "compaction",
        "budget": BUDGET,
        "target_percent": TARGET_PERCENT,
        "backend": given.backend,
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
