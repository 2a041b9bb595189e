"""Endless: what a token costs after a million tokens, and after a thousand.

Metric: median seconds of a decode step and of reading 512 tokens, in a session that has read
1,000,000 tokens and in one that has read 1,000, as a ratio (at most 1.03 is the target). Both are
forked into the same row of the same engine, in turns, before every block of steps, so that all
that differs is how many tokens went before; and the older is as many tokens old as brings the same
compactions at the same steps. The million is really read, with resident memory watched on the way
(within 1 % after a warm-up of 100,000). The model is tiny and random: all that could grow is what
the engine does around it. Beside it the seconds to save both sessions and to load them again, and
the bytes of the files.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from _fresh import parser, results
from _memory import resident_bytes
from rich.console import Console
from rich.progress import Progress
from transformers import LlamaConfig, LlamaForCausalLM

from lacache.common.records import Record, environment, write_record
from lacache.engine.engine import Engine
from lacache.engine.session import Session
from lacache.evals.plots import drawing
from lacache.evals.provenance import model_record, policy_record
from lacache.policies import Ladder
from lacache.policies.schedule import Timetable

# Full and steady before the thousandth token, with as long chunks as that allows.
CAPACITY = 576
POLICY = Ladder(span=1, overlap=0, recent=16, evict_batch=512)
CHUNK_SIZE = 512
YOUNG = 1_000
OLD = 1_000_000
WARM_UP = 100_000
EVERY = 10_000
ROUNDS = 40
STEPS = 64
READ = 512
VOCAB = 128
TARGET_RATIO = 1.03
ALLOWED_PERCENT = 1.0


def tiny_model() -> LlamaForCausalLM:
    """Four layers of 32, with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
    )
    return LlamaForCausalLM(config).eval()


def same_place(timetable: Timetable, young: int, at_least: int) -> int:
    """A number of tokens after which a session stands where it stood after `young`."""
    period = timetable.period_tokens
    old = young + -(-(at_least - young) // period) * period
    young_state, old_state = timetable.state_at(young), timetable.state_at(old)
    if young_state[1:] != old_state[1:]:
        raise SystemExit(f"error: not steady after {young} tokens: {young_state}, {old_state}")
    return old


def read_to(session: Session, num_tokens: int) -> list[tuple[int, int]]:
    """Read random tokens up to that many; tokens and resident bytes on the way."""
    tokens = torch.randint(0, VOCAB, (num_tokens - session.num_seen,))
    samples: list[tuple[int, int]] = []
    done = session.num_seen
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("reading", total=num_tokens, completed=done)

        def note(num_read: int) -> None:
            nonlocal done
            if (done + num_read) // EVERY > done // EVERY:
                samples.append((done + num_read, resident_bytes()))
                progress.update(task, completed=done + num_read)
            done += num_read

        list(session.generate(tokens, max_new_tokens=0, on_progress=note))
        progress.update(task, completed=done)
    return samples


def time_steps(base: Session) -> list[float]:
    """Seconds of each of some decode steps that follow `base`, which stays as it is."""
    seconds = []
    with base.fork() as session:
        # What it read left logits, so the first token needs no step.
        stream = session.generate([], max_new_tokens=STEPS + 1)
        next(stream)
        for _ in range(STEPS):
            begun = time.perf_counter()
            next(stream)
            seconds.append(time.perf_counter() - begun)
    return seconds


def time_read(base: Session, tokens: torch.Tensor) -> float:
    """Seconds to read tokens after `base`, which stays as it is."""
    with base.fork() as session:
        begun = time.perf_counter()
        list(session.generate(tokens, max_new_tokens=0))
        return time.perf_counter() - begun


def time_snapshots(
    engine: Engine, young: Session, old: Session, rounds: int
) -> dict[str, dict[str, float]]:
    """Median seconds to save and to load both, in turns, and the bytes of their files."""
    saves: dict[str, list[float]] = {"young": [], "old": []}
    loads: dict[str, list[float]] = {"young": [], "old": []}
    sizes: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for name, session in (("young", young), ("old", old)):
                path = Path(folder, name)
                begun = time.perf_counter()
                session.save(path)
                saved = time.perf_counter()
                with engine.load(path):
                    loads[name].append(time.perf_counter() - saved)
                saves[name].append(saved - begun)
                sizes[name] = path.stat().st_size
    return {
        "save_seconds": {name: statistics.median(saves[name]) for name in saves},
        "load_seconds": {name: statistics.median(loads[name]) for name in loads},
        "snapshot_bytes": sizes,
    }


def compare(young: Session, old: Session, rounds: int) -> Record:
    """Time both in turns, and the one that goes first in turns too."""
    tokens = torch.randint(0, VOCAB, (READ,))
    steps: dict[str, list[list[float]]] = {"young": [], "old": []}
    reads: dict[str, list[float]] = {"young": [], "old": []}
    sessions = [("young", young), ("old", old)]
    for number in range(rounds + 1):
        for name, session in sessions if number % 2 else reversed(sessions):
            block, read = time_steps(session), time_read(session, tokens)
            if number > 0:
                steps[name].append(block)
                reads[name].append(read)
    step = {name: statistics.median(s for block in steps[name] for s in block) for name in steps}
    mean = {name: statistics.median(map(statistics.fmean, steps[name])) for name in steps}
    read = {name: statistics.median(reads[name]) for name in reads}
    ratios = {
        "step_ratio": step["old"] / step["young"],
        "step_with_compactions_ratio": mean["old"] / mean["young"],
        "read_ratio": read["old"] / read["young"],
    }
    return {
        "rounds": rounds,
        "steps_per_round": STEPS,
        "read_tokens": READ,
        "step_seconds": step,
        "step_with_compactions_seconds": mean,
        "read_seconds": read,
        **{name: round(ratio, 4) for name, ratio in ratios.items()},
        "target_ratio": TARGET_RATIO,
        "is_target_met": max(ratios.values()) <= TARGET_RATIO,
        "step_blocks": {
            name: [statistics.median(block) for block in steps[name]] for name in steps
        },
        "read_runs": reads,
    }


def measure(at_least: int, warm_up: int, rounds: int) -> Record:
    """Read up to the older session, watch memory, compare, and give the record."""
    model = tiny_model()
    old_tokens = same_place(Timetable(POLICY.schedule(4, CAPACITY)), YOUNG, at_least)
    # Batch slots of the young, the old, and the fork of either.
    engine = Engine(model, CAPACITY, POLICY, max_sequences=3, chunk_size=CHUNK_SIZE)
    young = engine.open()
    read_to(young, YOUNG)
    old = young.fork()
    begun = time.perf_counter()
    samples = read_to(old, old_tokens)
    seconds = time.perf_counter() - begun
    warm = [rss for seen, rss in samples if seen >= warm_up]
    deviation = max(abs(rss / warm[0] - 1) for rss in warm) * 100
    return {
        "benchmark": "endless",
        "model": model_record(model, "tiny random Llama"),
        "policy": policy_record(POLICY),
        "capacity": CAPACITY,
        "chunk_size": CHUNK_SIZE,
        "young_tokens": YOUNG,
        "old_tokens": old_tokens,
        "compactions": old.report().compactions,
        "prefill_seconds": round(seconds, 1),
        **compare(young, old, rounds),
        **time_snapshots(engine, young, old, rounds),
        "engine_bytes": engine.num_bytes,
        "warm_up": warm_up,
        "deviation_percent": round(deviation, 4),
        "allowed_percent": ALLOWED_PERCENT,
        "is_flat": deviation <= ALLOWED_PERCENT,
        "samples": samples,
        "environment": environment(),
    }


def plot(record: Record, path: Path) -> None:
    """Draw the record."""
    colours = {"young": "#0072B2", "old": "#D55E00"}
    with drawing(path, 11, 4.2) as figure:
        times, memory = figure.subplots(1, 2)
        for name, colour in colours.items():
            blocks = [1e3 * seconds for seconds in record["step_blocks"][name]]
            median = 1e3 * record["step_seconds"][name]
            label = f"after {record[f'{name}_tokens']:,} tokens: {median:.2f} ms"
            times.plot(blocks, color=colour, marker="o", markersize=3, linewidth=1, label=label)
        times.set_ylim(0, 1.3 * times.get_ylim()[1])
        times.xaxis.get_major_locator().set_params(integer=True)
        times.set_xlabel("block of steps, in turns")
        times.set_ylabel("median decode step in ms")
        times.set_title(f"A decode step: ratio {record['step_ratio']:.3f}")
        times.legend(loc="upper left")
        seen = [number for number, _ in record["samples"]]
        memory.plot(seen, [rss / 2**20 for _, rss in record["samples"]], color="#444444")
        memory.axvspan(0, record["warm_up"], color="#E6E6E6", label="warm-up")
        memory.set_ylim(0, 1.15 * memory.get_ylim()[1])
        memory.set_xlim(0, seen[-1])
        memory.xaxis.get_major_locator().set_params(nbins=5)
        memory.xaxis.set_major_formatter("{x:,.0f}")
        memory.set_xlabel("tokens read")
        memory.set_ylabel("resident memory in MiB")
        memory.set_title(f"Memory: within {record['deviation_percent']:.2f} % after the warm-up")
        memory.legend(loc="lower right")


def main() -> int:
    """Measure, write, draw and print the record; 1 if memory was not flat."""
    given = parser(__doc__).parse_args()
    torch.set_num_threads(given.threads)
    sizes = (40_000, 20_000, 4) if given.quick else (OLD, WARM_UP, ROUNDS)
    record = measure(*sizes)
    folder = results(quick=given.quick)
    write_record(folder / "endless.json", record)
    plot(record, folder / "endless.png")
    print(json.dumps(record))
    return 0 if record["is_flat"] else 1


if __name__ == "__main__":
    sys.exit(main())
