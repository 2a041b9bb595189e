"""Planning: the schedule of a million tokens, from its table and by playing it.

Metric: seconds of plain Python, median over several runs, to know the state (tokens held, cursor)
after 1,000,000 tokens at 32 layers, capacity 4096, evict_batch 1. "table" builds the periodic table
and looks the state up; "kept" works out which tokens each layer holds; "loop" counts through every
compaction. All three must agree.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from lacache.common.records import environment, write_record
from lacache.policies import Ladder, Schedule, State, Timetable, default_span_overlap, kept_after

RESULT = Path(__file__).parent / "results" / "plan.json"
NUM_LAYERS = 32
CAPACITY = 4096
TOKENS = 1_000_000
RUNS = 5


def loop(schedule: Schedule) -> State:
    """The state after TOKENS tokens, one compaction after the other."""
    state = schedule.start()
    while state.num_seen < TOKENS:
        state = schedule.settle(state)
        state = state.insert(min(schedule.capacity - state.num_cached, TOKENS - state.num_seen))
    return state


WAYS: dict[str, Callable[[Schedule], State]] = {
    "table": lambda schedule: Timetable(schedule).state_at(TOKENS),
    "kept": lambda schedule: kept_after(schedule, TOKENS).state,
    "loop": loop,
}


def measure(schedule: Schedule, way: Callable[[Schedule], State]) -> tuple[list[float], State]:
    """Seconds of each run and the state that it found."""
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        state = way(schedule)
        seconds.append(time.perf_counter() - start)
    return seconds, state


def main() -> None:
    """Measure both ladders, check that the ways agree, write and print the record."""
    rows = []
    for span, overlap in [default_span_overlap(NUM_LAYERS), (16, 0)]:
        policy = Ladder(span=span, overlap=overlap, evict_batch=1)
        schedule = policy.schedule(NUM_LAYERS, CAPACITY)
        row: dict[str, object] = {"span": span, "overlap": overlap}
        states = []
        for name, way in WAYS.items():
            seconds, state = measure(schedule, way)
            row[f"{name}_seconds"] = round(statistics.median(seconds), 5)
            row[f"{name}_runs"] = [round(s, 5) for s in seconds]
            states.append(state)
        if len(set(states)) != 1:
            raise SystemExit(f"error: the ways disagree: {states}")
        row["period_tokens"] = Timetable(schedule).period_tokens
        row["state"] = states[0]._asdict()
        rows.append(row)
    record = {
        "benchmark": "plan",
        "num_layers": NUM_LAYERS,
        "capacity": CAPACITY,
        "evict_batch": 1,
        "tokens": TOKENS,
        "runs": RUNS,
        "rows": rows,
        "environment": environment(),
    }
    write_record(RESULT, record)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
