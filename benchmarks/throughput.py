"""Throughput: many sequences at once, how many fit in memory, and what a long prompt costs others.

Three measurements with the default model in bfloat16 (float32 where a processor has no arithmetic
for it) and a budget of 512 tokens per layer, each in processes of its own, medians, the ways in
turns:

- sequences: tokens per second of the engine, greedy, with 1, 4, 16 and 64 sequences, eager and
  (where the compiler's minutes fit) compiled; and of transformers' DynamicCache with as many
  sequences of 2,048 tokens each, in a plain loop. The engine's speed is the same at any length;
  the full cache's falls.
- sessions: how many sequences of 32,768 tokens fit in a given memory, by arithmetic: of the full
  cache, and of the engine with the default policy and with one ladder for all layers. As many
  sequences of the default policy as fit here are then allocated, and compared with the growth of
  resident memory.
- wait: seconds between two tokens while a sequence decodes, alone and while a prompt of 4,096
  tokens is prefilled beside it in chunks of at most 128; and seconds of that prefill alone.
"""

import argparse
import json
import statistics
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import psutil
import torch
from _fresh import parser, results, run_fresh
from _memory import resident_bytes
from matplotlib.ticker import LogLocator, NullFormatter
from rich.console import Console
from rich.progress import Progress
from transformers import DynamicCache

from lacache.common.records import Record, environment, write_record
from lacache.corpora import load_document
from lacache.engine.engine import Engine
from lacache.engine.session import Session
from lacache.evals.plots import drawing
from lacache.evals.provenance import model_record
from lacache.models import load_model
from lacache.models.arithmetic import has_arithmetic
from lacache.models.decoder import cache_argument
from lacache.models.model_info import model_info

BUDGET = 512
FILL = 600
CONTEXT = 2_048
LONG = 32_768
NUM_SEQUENCES = (1, 4, 16, 64)
# Compiling takes about a minute each.
COMPILED_NUM_SEQUENCES = (1, 4)
ROUNDS = 3
TOKENS_PER_BLOCK = {1: 16, 4: 8, 16: 5, 64: 3}
PROMPT = 4_096
CHUNK_SIZE = 128
GIB = 2**30


def default_model() -> tuple[Any, str, torch.Tensor]:
    """SmolLM2-135M-Instruct in bfloat16 where the processor computes with it, and a text of it."""
    dtype = "bfloat16" if has_arithmetic(torch.bfloat16) else "float32"
    loaded = load_model(dtype=dtype, progress=False)
    text = load_document("shakespeare:hamlet").content
    ids = loaded.tokenizer(text, return_tensors="pt", verbose=False).input_ids[0]
    return loaded.model, loaded.name, ids


class Way(ABC):
    """Writes a token to each of many sequences."""

    cache_bytes: int
    compile_seconds: float | None = None

    @abstractmethod
    def step(self) -> None:
        """One token more in each sequence."""

    @final
    def block(self, num_tokens: int) -> list[float]:
        """Seconds of each of some steps."""
        seconds = []
        for _ in range(num_tokens):
            begun = time.perf_counter()
            self.step()
            seconds.append(time.perf_counter() - begun)
        return seconds


@final
class OnEngine(Way):
    """Sessions of an engine, all full, forked from one that has read a text."""

    def __init__(
        self, model: Any, ids: torch.Tensor, num_sequences: int, *, compiled: bool
    ) -> None:
        engine = Engine(model, BUDGET, max_sequences=num_sequences, compile=compiled)
        engine.warm_up()
        self.compile_seconds = engine.compile_seconds
        self.cache_bytes = engine.num_bytes
        sessions = [engine.open()]
        list(sessions[0].generate(ids[:FILL], max_new_tokens=0))
        sessions += [sessions[0].fork() for _ in range(num_sequences - 1)]
        self._streams = [session.generate([]) for session in sessions]

    def step(self) -> None:
        """The first stream to want a token makes the engine compute one for all."""
        for stream in self._streams:
            next(stream)


@final
class WithFullCache(Way):
    """Transformers' DynamicCache with made-up keys and values, and a plain greedy loop."""

    def __init__(self, model: Any, num_sequences: int, context: int) -> None:
        self._model = model
        self._cache = DynamicCache(config=model.config)
        for layer in model_info(model).growing:
            shape = (num_sequences, layer.num_heads, context)
            keys = torch.randn(*shape, layer.key_size, dtype=model.dtype)
            values = torch.randn(*shape, layer.value_size, dtype=model.dtype)
            self._cache.update(keys, values, layer.index)
        self.cache_bytes = num_sequences * context * model_info(model).bytes_per_token
        self._tokens = [1] * num_sequences

    @torch.no_grad()
    def step(self) -> None:
        """One forward, one choice."""
        ids = torch.tensor(self._tokens)[:, None]
        output = self._model(
            input_ids=ids,
            **cache_argument(self._model, self._cache),
            use_cache=True,
            logits_to_keep=1,
        )
        self._tokens = output.logits[:, -1].float().argmax(dim=-1).tolist()


def measure_sequences(num_sequences: int, *, compiled: bool, quick: bool) -> Record:
    """All ways with that many sequences, in turns."""
    model, name, ids = default_model()
    ways: dict[str, Way] = {"engine": OnEngine(model, ids, num_sequences, compiled=False)}
    if compiled:
        ways["engine, compiled"] = OnEngine(model, ids, num_sequences, compiled=True)
    ways["full cache"] = WithFullCache(model, num_sequences, CONTEXT)
    num_tokens = 2 if quick else TOKENS_PER_BLOCK.get(num_sequences, 3)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(2 if quick else ROUNDS + 1):
        for way in ways if number % 2 else reversed(ways):
            block = ways[way].block(num_tokens)
            if number > 0:
                seconds[way] += block
    return {
        "model": model_record(model, name),
        "num_sequences": num_sequences,
        "ways": [
            {
                "way": way,
                "tokens_per_second": round(num_sequences / statistics.median(seconds[way]), 2),
                "step_seconds": statistics.median(seconds[way]),
                "cache_bytes": ways[way].cache_bytes,
                "compile_seconds": ways[way].compile_seconds,
                "step_seconds_runs": [round(s, 5) for s in seconds[way]],
            }
            for way in ways
        ],
    }


def measure_sessions(memory: int) -> Record:
    """Arithmetic, and num_sequences that are really there."""
    model, _, ids = default_model()
    sequence_bytes = Engine(model, BUDGET).bytes_per_sequence
    ladder_bytes = Engine(model, BUDGET, "ladder").bytes_per_sequence
    full_bytes = LONG * model_info(model).bytes_per_token
    fit = memory // sequence_bytes
    # Other programs need memory too.
    possible = min(memory, int(0.6 * psutil.virtual_memory().available))
    num_sequences = max(1, possible // sequence_bytes)
    before = resident_bytes()
    engine = Engine(model, BUDGET, max_sequences=num_sequences)
    grown = resident_bytes() - before
    with engine.open() as session:
        begun = time.perf_counter()
        next(session.generate(ids[:8], max_new_tokens=1))
        first = time.perf_counter() - begun
    return {
        "memory_bytes": memory,
        "tokens_per_session": LONG,
        "full_cache_session_bytes": full_bytes,
        "full_cache_sessions": memory // full_bytes,
        "engine_session_bytes": sequence_bytes,
        "engine_sessions": fit,
        "ratio": round(full_bytes / sequence_bytes, 2),
        "ladder_session_bytes": ladder_bytes,
        "ladder_sessions": memory // ladder_bytes,
        "allocated_sequences": num_sequences,
        "allocated_bytes": engine.num_bytes,
        "is_arithmetic_exact": engine.num_bytes == num_sequences * sequence_bytes,
        "resident_growth_bytes": grown,
        "resident_over_arithmetic": round(grown / engine.num_bytes, 4),
        "first_token_seconds": round(first, 3),
    }


def time_gaps(stream: Any, more: Callable[[], bool]) -> list[float]:
    """Seconds between tokens, while `more` says so."""
    gaps = []
    while more():
        begun = time.perf_counter()
        next(stream)
        gaps.append(time.perf_counter() - begun)
    return gaps


def gaps_beside(writer: Session, prompt: torch.Tensor | None, engine: Engine) -> Record:
    """Seconds between a writer's tokens: 24 of them, or as long as a prompt is read beside it."""
    chunks: list[int] = []
    with writer.fork() as session, session.generate([]) as stream:
        next(stream)
        if prompt is None:
            left = iter(range(24))
            return {"gaps": time_gaps(stream, lambda: next(left, None) is not None)}
        with engine.open() as reader:
            reading = reader.generate(prompt, max_new_tokens=0, on_progress=chunks.append)
            gaps = time_gaps(stream, lambda: sum(chunks) < len(prompt))
            list(reading)
    return {"gaps": gaps, "chunks": chunks}


def measure_wait(*, quick: bool) -> Record:
    """A writer alone, and beside a reader, in turns; then the prompt in one forward."""
    model, _, ids = default_model()
    prompt = ids[: 512 if quick else PROMPT]
    # Batch slots: a decoding sequence, its fork, and the prefill.
    engine = Engine(model, BUDGET, max_sequences=3, chunk_size=CHUNK_SIZE)
    writer = engine.open()
    list(writer.generate(ids[:FILL], max_new_tokens=0))
    alone: list[float] = []
    beside: list[float] = []
    chunks: list[int] = []
    gaps_beside(writer, None, engine)
    for _ in range(1 if quick else 2):
        alone += gaps_beside(writer, None, engine)["gaps"]
        found = gaps_beside(writer, prompt, engine)
        beside += found["gaps"]
        chunks += found["chunks"]
    with torch.no_grad():
        begun = time.perf_counter()
        model(
            prompt[None],
            **cache_argument(model, DynamicCache(config=model.config)),
            logits_to_keep=1,
        )
        at_once = time.perf_counter() - begun
    return {
        "prompt_tokens": len(prompt),
        "chunk_size": CHUNK_SIZE,
        "longest_chunk": max(chunks),
        "mean_chunk": round(statistics.fmean(chunks), 1),
        "alone_median_seconds": statistics.median(alone),
        "alone_longest_seconds": max(alone),
        "beside_median_seconds": statistics.median(beside),
        "beside_longest_seconds": max(beside),
        "longest_wait_ratio": round(max(beside) / max(alone), 2),
        "prompt_at_once_seconds": at_once,
        "alone_gaps": [round(s, 4) for s in alone],
        "beside_gaps": [round(s, 4) for s in beside],
    }


def run_case(case: str, given: argparse.Namespace) -> Record:
    """One measurement, here and now."""
    if case == "sessions":
        return measure_sessions(int(given.memory * GIB))
    if case == "wait":
        return measure_wait(quick=given.quick)
    num_sequences, _, compiled = case.partition("-")
    return measure_sequences(int(num_sequences), compiled=bool(compiled), quick=given.quick)


def decimal(axes: Any) -> None:
    """Plain numbers on a logarithmic vertical axis."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def plot(record: Record, path: Path) -> None:
    """Draw the record."""
    colours = {"engine": "#0072B2", "engine, compiled": "#D55E00", "full cache": "#444444"}
    with drawing(path, 13, 4.4) as figure:
        speed, fit, wait = figure.subplots(1, 3, width_ratios=[1.2, 0.8, 1.2])
        for way, colour in colours.items():
            points = [
                (case["num_sequences"], found["tokens_per_second"])
                for case in record["sequences"]
                for found in case.get("ways", [])
                if found["way"] == way
                # A fused step is not compiled: both ways run it.
                and (way != "engine, compiled" or found["compile_seconds"] is not None)
            ]
            if points:
                label = f"{way} at {CONTEXT:,} tokens" if way == "full cache" else way
                speed.plot(*zip(*points, strict=True), color=colour, marker="o", label=label)
        speed.set_xscale("log", base=4)
        speed.set_yscale("log")
        speed.set_xticks([case["num_sequences"] for case in record["sequences"]])
        speed.xaxis.set_major_formatter("{x:.0f}")
        decimal(speed)
        speed.set_xlabel("sequences at once")
        speed.set_ylabel("tokens per second, all together")
        speed.set_title("Throughput")
        speed.legend(loc="center right")
        sessions = record["sessions"]
        counts = [sessions[f"{way}_sessions"] for way in ("full_cache", "engine", "ladder")]
        bars = fit.bar(["full\ncache", "engine", "engine,\nladder"], counts, width=0.6)
        for bar, colour in zip(bars, ("#444444", "#0072B2", "#56B4E9"), strict=True):
            bar.set_color(colour)
        fit.bar_label(bars, [f"{count:,}" for count in counts], padding=3)
        fit.set_ylim(0, 1.15 * max(counts))
        fit.set_ylabel(f"sessions of {LONG:,} tokens")
        fit.set_title(f"What fits in {sessions['memory_bytes'] / GIB:g} GiB")
        fit.grid(visible=False, axis="x")
        found = record["wait"]
        for name, colour in (("alone", "#444444"), ("beside", "#D55E00")):
            gaps = found[f"{name}_gaps"]
            label = "alone" if name == "alone" else f"beside {found['prompt_tokens']:,} tokens"
            wait.plot(
                gaps,
                color=colour,
                linewidth=1.2,
                label=f"{label}: at most {found[f'{name}_longest_seconds']:.2f} s",
            )
        wait.axhline(
            found["prompt_at_once_seconds"],
            color="#8A8A8A",
            linestyle="--",
            label=f"prompt in one forward: {found['prompt_at_once_seconds']:.1f} s",
        )
        wait.set_yscale("log")
        decimal(wait)
        wait.set_xlabel("token of the decoding sequence")
        wait.set_ylabel("seconds since the token before")
        wait.set_title("Waiting for a token")
        # Between the gaps and the prompt in one forward.
        wait.legend(loc="center right", bbox_to_anchor=(1.0, 0.7))


def measure(given: argparse.Namespace) -> Record:
    """Every case in a process of its own."""
    num_sequences = (1, 4) if given.quick else NUM_SEQUENCES
    compiled = () if given.quick or given.no_compile else COMPILED_NUM_SEQUENCES
    cases = [
        f"{number}-compiled" if number in compiled else str(number) for number in num_sequences
    ]
    found: dict[str, Record] = {}
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("throughput", total=len(cases) + 2)
        for case in [*cases, "sessions", "wait"]:
            progress.update(task, description=case)
            options = [f"--case={case}", f"--threads={given.threads}", f"--memory={given.memory}"]
            found[case] = run_fresh(__file__, options + ["--quick"] * given.quick)
            if "error" in found[case]:
                raise SystemExit(f"error: {case}: {found[case]['error']}")
            progress.advance(task)
    return {
        "benchmark": "throughput",
        "model": found[cases[0]].pop("model"),
        "budget": BUDGET,
        "full_cache_context": CONTEXT,
        "sequences": [{k: v for k, v in found[case].items() if k != "model"} for case in cases],
        "sessions": found["sessions"],
        "wait": found["wait"],
        "environment": environment(),
    }


def main() -> None:
    """Measure, write, draw and print the record."""
    options = parser(__doc__)
    options.add_argument("--memory", type=float, default=16.0, help="for sessions, in GiB")
    options.add_argument("--no-compile", action="store_true", help="leave out compiled steps")
    options.add_argument("--case", help="one measurement, and write nothing")
    given = options.parse_args()
    if given.quick:
        given.memory = min(given.memory, 1.0)
    torch.set_num_threads(given.threads)
    if given.case:
        print(json.dumps(run_case(given.case, given)))
        return
    record = measure(given)
    folder = results(quick=given.quick)
    write_record(folder / "throughput.json", record)
    plot(record, folder / "throughput.png")
    print(json.dumps(record))


if __name__ == "__main__":
    sys.exit(main())
