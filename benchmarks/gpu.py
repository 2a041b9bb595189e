"""GPU: decoding with a model of the shape of Llama-3-8B in bfloat16, in less than ten minutes.

Experimental: it was never run on a GPU; without one, `--quick` runs it in small on the CPU.

Metric: milliseconds of a decode step of 1, 16, 64 and 256 sequences after 32,768 tokens
each, with CUDA graphs; and the share of the bandwidth limit that it reaches: bytes of weights and
of keys and values that attention reads, over the bandwidth of a large copy on the same device
(target at batch 1: 0.85). The engine attends by torch's fused attention and by flash attention.
Beside it transformers' StaticCache that holds all 32,768 tokens, compiled likewise, and how many
such sequences fit before memory ends. Weights are random and made on the device.

"step" is the forward alone, as a median; "with compactions" the mean over steps that need them,
which tokens per second and the share of the limit are of; "with choosing" the whole engine, greedy,
with the choice of a token for each sequence.

Groups of cases run in processes of their own, the most telling first. What does not fit into the
time is recorded as missing.
"""

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from _flash import flash, largest_difference
from _fresh import parser, results, run_fresh
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, StaticCache

from lacache.common.records import Record, append_record, environment, read_records, write_record
from lacache.engine.engine import Engine
from lacache.engine.runner import Runner
from lacache.errors import MissingExtraError
from lacache.evals.plots import drawing
from lacache.evals.provenance import model_record, policy_record
from lacache.models.decoder import cache_argument
from lacache.models.model_info import model_info
from lacache.policies import Ladder

TARGET = 0.85
SECONDS = 570
GROUPS: tuple[tuple[str, ...], ...] = (
    ("bandwidth", "engine sdpa 1", "engine flash 1", "full 1"),
    ("engine sdpa 16", "engine flash 16", "full 16"),
    ("fit",),
    ("engine best 256", "full 256"),
    ("engine best 64", "full 64"),
)
QUICK: tuple[tuple[str, ...], ...] = (
    ("bandwidth", "engine sdpa 1", "engine flash 1", "full 1"),
    ("fit", "engine best 3", "full 3"),
)
TABLE = (
    ("case", "case"),
    ("step_ms", "step, ms"),
    ("step_with_compactions_ms", "with compactions"),
    ("step_with_choosing_ms", "with choosing"),
    ("tokens_per_second", "tokens/s"),
    ("share_of_limit", "share of limit"),
    ("cache_gb", "cache, GB"),
    ("compile_seconds", "compiling, s"),
    ("error", ""),
)


class Sizes:
    """What is measured: a large GPU's, or a try's."""

    def __init__(self, *, quick: bool, device: str) -> None:
        self.device = torch.device(device)
        self.context = 192 if quick else 32_768
        self.steps = 6 if quick else 96
        self.chosen_steps = 3 if quick else 24
        self.copy_bytes = 2**24 if quick else 2**32
        self.budget = 64 if quick else 1024
        self.policy = (
            Ladder(span=1, recent=4, evict_batch=32)
            if quick
            else Ladder(span=16, recent=32, evict_batch=512)
        )
        small = {
            "vocab_size": 512,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        }
        large = {
            "vocab_size": 128_256,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
        }
        self.shape = small if quick else large


def make_model(sizes: Sizes) -> Any:
    """Random weights in bfloat16, made where they are used."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **sizes.shape,
        max_position_embeddings=131_072,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=False,
    )
    with sizes.device:
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def weight_bytes(model: Any) -> int:
    """Of weights that a step reads: all but the embedding, of which it reads one vector."""
    embedding = model.get_input_embeddings().weight
    return sum(p.nbytes for p in model.parameters() if p is not embedding)


def wait(device: torch.device) -> None:
    """For all that was asked of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(step: Callable[[], Any], steps: int, device: torch.device) -> list[float]:
    """Seconds of each step, the device's work included."""
    seconds = []
    for _ in range(steps):
        wait(device)
        begun = time.perf_counter()
        step()
        wait(device)
        seconds.append(time.perf_counter() - begun)
    return seconds


def bandwidth(sizes: Sizes) -> Record:
    """Of a large copy, reading and writing counted: bytes per second, the best of some runs."""
    source = torch.ones(sizes.copy_bytes, dtype=torch.uint8, device=sizes.device)
    target = torch.empty_like(source)
    seconds = timed(lambda: target.copy_(source), 10, sizes.device)
    return {"bytes_per_second": 2 * sizes.copy_bytes / min(seconds), "seconds_runs": seconds}


def device_record(sizes: Sizes) -> Record:
    """What ran it."""
    if sizes.device.type != "cuda":
        return {"name": "CPU", "is_gpu": False}
    info = torch.cuda.get_device_properties(sizes.device)
    return {
        "name": info.name,
        "is_gpu": True,
        "memory_bytes": info.total_memory,
        "cuda": torch.version.cuda,
    }


def engine_case(model: Any, sizes: Sizes, num_sequences: int, attention: str) -> Record:
    """Measure sessions of the compiled engine, each after the whole context."""
    difference = None
    if attention == "flash":
        if sizes.device.type != "cuda":
            raise RuntimeError("flash attention needs a GPU")
        difference = largest_difference(sizes.device, torch.bfloat16)
        if not difference < 0.02:
            raise RuntimeError(f"flash attention differs from SDPA by {difference:.3g}")
    attend = flash if attention == "flash" else None
    # The engine offers no choice of attention.
    with patch("lacache.engine.engine.Runner", partial(Runner, attend=attend)):
        engine = Engine(
            model, sizes.budget, sizes.policy, max_sequences=num_sequences, compile=True
        )
    runner = engine.scheduler.runner
    skips = graph_skips()
    engine.warm_up()
    ids = torch.randint(0, sizes.shape["vocab_size"], (sizes.context + num_sequences,))
    first = engine.open()
    begun = time.perf_counter()
    list(first.generate(ids[: sizes.context], max_new_tokens=0))
    wait(sizes.device)
    reading = time.perf_counter() - begun
    sessions = []
    for number in range(num_sequences - 1):
        sessions.append(first.fork())
        # One token on, so that num_sequences do not all compact at once.
        list(first.generate(ids[sizes.context + number :][:1], max_new_tokens=0))
    streams = [session.generate([]) for session in (first, *sessions)]
    for stream in streams:
        next(stream)

    def choose() -> None:
        for stream in streams:
            next(stream)

    choose()
    chosen = timed(choose, sizes.chosen_steps, sizes.device)
    tokens, active = [1] * num_sequences, list(range(num_sequences))

    def compactions() -> int:
        return sum(sequence.groups[0].num_compactions for sequence in runner.cache.sequences)

    # All num_sequences are computed whoever is active, so this is the forward alone.
    idle = timed(lambda: runner.decode(tokens, []), sizes.steps, sizes.device)
    before = compactions()
    seconds = timed(lambda: runner.decode(tokens, active), sizes.steps, sizes.device)
    layer = model_info(model).bytes_per_token
    return {
        "step_ms": 1e3 * statistics.median(idle),
        "step_with_compactions_ms": 1e3 * statistics.fmean(seconds),
        "step_with_choosing_ms": 1e3 * statistics.fmean(chosen),
        "compactions_per_step": (compactions() - before) / sizes.steps,
        "read_bytes_per_step": weight_bytes(model) + num_sequences * sizes.budget * layer,
        "cache_bytes": engine.num_bytes,
        "is_compiled": runner.compile_seconds is not None,
        "compile_seconds": runner.compile_seconds,
        "cuda_graph_skips": graph_skips() - skips,
        "reading_tokens_per_second": sizes.context / reading,
        "difference_from_sdpa": difference,
        "seconds_runs": [round(s, 6) for s in seconds],
    }


def graph_skips() -> int:
    """How often torch gave CUDA graphs up, which it says in its log only."""
    from torch._dynamo.utils import counters

    return int(counters["inductor"]["cudagraph_skips"])


def full_case(model: Any, sizes: Sizes, num_sequences: int, *, compiled: bool = True) -> Record:
    """Transformers' StaticCache, as long as the context, with made-up keys and values."""
    room = sizes.steps + 8
    cache: Any = StaticCache(config=model.config, max_cache_len=sizes.context + room)
    layer = model_info(model).growing[0]
    like = torch.empty(
        num_sequences, layer.num_heads, 1, layer.key_size, dtype=model.dtype, device=sizes.device
    )
    for held in cache.layers:
        held.lazy_initialization(like, like)
        held.keys.normal_()
        held.values.normal_()
        held.cumulative_length.fill_(sizes.context)
    forward = model.forward
    if compiled:
        forward = torch.compile(
            model.forward, mode="reduce-overhead", fullgraph=True, dynamic=False
        )
    given = cache_argument(model, cache)
    position = sizes.context
    ids = torch.ones(num_sequences, 1, dtype=torch.long, device=sizes.device)
    skips = graph_skips()

    @torch.no_grad()
    def step() -> Tensor:
        nonlocal position
        positions = torch.full((num_sequences, 1), position, device=sizes.device)
        position += 1
        output = forward(input_ids=ids, position_ids=positions, **given, use_cache=True)
        logits: Tensor = output.logits
        return logits

    begun = time.perf_counter()
    step()
    wait(sizes.device)
    first = time.perf_counter() - begun
    for _ in range(3 if compiled else 1):
        step()
    seconds = timed(step, sizes.steps if compiled else 2, sizes.device)
    cache_bytes = sum(t.nbytes for held in cache.layers for t in (held.keys, held.values))
    return {
        "step_ms": 1e3 * statistics.median(seconds),
        "read_bytes_per_step": weight_bytes(model) + cache_bytes,
        "cache_bytes": cache_bytes,
        "is_compiled": compiled,
        "compile_seconds": first if compiled else None,
        "cuda_graph_skips": graph_skips() - skips,
        "seconds_runs": [round(s, 6) for s in seconds],
    }


def fit_case(model: Any, sizes: Sizes) -> Record:
    """How many sequences of the context fit: by arithmetic, and with a step that really runs."""
    full = sizes.context * model_info(model).bytes_per_token
    sequence_bytes = Engine(model, sizes.budget, sizes.policy).bytes_per_sequence
    free = (
        torch.cuda.mem_get_info(sizes.device)[0]
        if sizes.device.type == "cuda"
        else 12 * full + full // 2
    )
    num_sequences = free // full
    found = None
    while num_sequences > 0 and found is None:
        try:
            found = full_case(model, sizes, num_sequences, compiled=False)
        except torch.OutOfMemoryError:
            clean()
            num_sequences -= 1
    return {
        "free_bytes": free,
        "full_cache_session_bytes": full,
        "full_cache_sessions": num_sequences,
        "full_cache_eager_step_ms": found and found["step_ms"],
        "engine_session_bytes": sequence_bytes,
        "engine_sessions": free // sequence_bytes,
        "ratio": full / sequence_bytes,
    }


def clean() -> None:
    """Give the device's memory back."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def run_one(case: str, model: Any, sizes: Sizes) -> Record:
    """One case, here and now; what goes wrong becomes part of the record."""
    kind, *rest = case.split()
    found: Record
    try:
        if kind == "bandwidth":
            found = bandwidth(sizes)
        elif kind == "fit":
            found = fit_case(model, sizes)
        elif kind == "full":
            found = full_case(model, sizes, int(rest[0]))
        else:
            found = engine_case(model, sizes, int(rest[1]), rest[0])
    except torch.OutOfMemoryError as error:
        found = {"error": "out of memory", "message": str(error).splitlines()[0]}
    except Exception as error:
        # A case that fails, for whatever reason, must not take the others along.
        found = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"}
    if rest and "error" not in found:
        found["num_sequences"] = int(rest[-1])
    if sizes.device.type == "cuda":
        found["peak_memory_bytes"] = torch.cuda.max_memory_allocated(sizes.device)
        torch.cuda.reset_peak_memory_stats(sizes.device)
    return {"case": case} | found


def run_group(cases: list[str], sizes: Sizes, path: Path) -> Record:
    """Cases of one process; each is written down as soon as it is measured."""
    model = make_model(sizes)
    append_record(
        path,
        {
            "case": "info",
            "model": model_record(model, "random, shape of Llama-3-8B"),
            "device": device_record(sizes),
            "weight_bytes": weight_bytes(model),
            "environment": environment(),
        },
    )
    for case in cases:
        append_record(path, run_one(case, model, sizes))
        clean()
    return {"done": len(cases)}


def best_attention(found: dict[str, Record]) -> str:
    """The faster one, where most num_sequences were measured."""
    for num_sequences in (16, 1):
        pair = {kind: found.get(f"engine {kind} {num_sequences}", {}) for kind in ("sdpa", "flash")}
        times = {kind: one["step_ms"] for kind, one in pair.items() if one.get("step_ms")}
        if times:
            return min(times, key=lambda kind: times[kind])
    return "sdpa"


def measure(given: argparse.Namespace, console: Console) -> Record:
    """All groups, one after the other, until time is up."""
    begun = time.perf_counter()
    found: dict[str, Record] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, group in enumerate(QUICK if given.quick else GROUPS):
            cases = [case.replace("best", best_attention(found)) for case in group]
            left = given.seconds - (time.perf_counter() - begun)
            path = Path(folder) / f"{number}.jsonl"
            console.print(f"{left:.0f} s left: {', '.join(cases)}")
            said: Record = {"error": "no time was left"}
            if left > 30:
                arguments = [f"--group={','.join(cases)}", f"--out={path}"]
                arguments += [f"--device={given.device}", f"--threads={given.threads}"]
                said = run_fresh(__file__, arguments + ["--quick"] * given.quick, timeout=left)
            measured = {one.pop("case"): one for one in read_records(path)}
            for case in cases:
                measured.setdefault(case, {"error": said.get("error", "was not reached")})
            # Of several groups, the first info.
            found = found | {case: one for case, one in measured.items() if case not in found}
    return make_record(found, Sizes(quick=given.quick, device="cpu"))


def make_record(found: dict[str, Record], sizes: Sizes) -> Record:
    """The record, with what only several cases together say."""
    info = found.pop("info", {})
    speed = found.pop("bandwidth", {})
    fit = found.pop("fit", {})
    rate = speed.get("bytes_per_second")
    cases = []
    for case, one in found.items():
        if "error" not in one:
            # A full cache has no compactions.
            milliseconds = one.get("step_with_compactions_ms", one["step_ms"])
            one["tokens_per_second"] = 1e3 * one["num_sequences"] / milliseconds
            if rate:
                limit = 1e3 * one["read_bytes_per_step"] / rate
                one["share_of_limit"] = limit / milliseconds
                one["share_of_limit_without_compactions"] = limit / one["step_ms"]
        cases.append({"case": case} | one)
    at_one = [
        one["share_of_limit"]
        for one in cases
        if one["case"].startswith("engine")
        and one.get("num_sequences") == 1
        and "share_of_limit" in one
    ]
    return {
        "benchmark": "gpu",
        "device": info.get("device"),
        "model": info.get("model"),
        "policy": policy_record(sizes.policy),
        "context": sizes.context,
        "weight_bytes": info.get("weight_bytes"),
        "bandwidth_bytes_per_second": rate,
        "target_share_of_limit": TARGET,
        "best_share_of_limit": max(at_one, default=None),
        "is_target_met": max(at_one, default=0.0) >= TARGET,
        "fit": fit,
        "cases": cases,
        "environment": info.get("environment", environment()),
    }


def show(record: Record, console: Console) -> None:
    """The record as a table."""
    rate = record["bandwidth_bytes_per_second"]
    name = (record["device"] or {}).get("name", "no device")
    title = f"{name}, {rate / 1e9:,.0f} GB/s" if rate else name
    table = Table(title=title, title_justify="left")
    for _, heading in TABLE:
        table.add_column(heading, justify="left" if heading in ("case", "") else "right")
    for one in record["cases"]:
        shown = one | {"cache_gb": one["cache_bytes"] / 1e9 if "cache_bytes" in one else None}
        table.add_row(*(_cell(shown.get(key)) for key, _ in TABLE))
    console.print(table)
    fit = record["fit"]
    if "error" not in fit and fit:
        console.print(
            f"Sequences of {record['context']:,} tokens beside the weights: "
            f"{fit['full_cache_sessions']:,} with the full cache, {fit['engine_sessions']:,} on "
            "the engine."
        )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


def plot(record: Record, path: Path) -> None:
    """Draw the record: time of a step by number of sequences."""
    ways = {
        "engine sdpa": ("engine, fused attention", "#0072B2"),
        "engine flash": ("engine, flash attention", "#D55E00"),
        "full": (f"full static cache of {record['context']:,}", "#444444"),
    }
    with drawing(path, 8, 4.6) as figure:
        axes = figure.subplots()
        num_sequences = sorted(
            {one["num_sequences"] for one in record["cases"] if "num_sequences" in one}
        )
        for way, (label, colour) in ways.items():
            points = sorted(
                (one["num_sequences"], 1e3 * one["num_sequences"] / one["tokens_per_second"])
                for one in record["cases"]
                if one["case"].rpartition(" ")[0] == way and "tokens_per_second" in one
            )
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, marker="o", label=label)
        fit = record["fit"].get("full_cache_sessions")
        if fit:
            axes.axvline(fit, color="#8A8A8A", linestyle="--")
            axes.annotate(
                f"full cache: memory ends after {fit}",
                (fit, 0.02),
                xycoords=("data", "axes fraction"),
                rotation=90,
                ha="right",
                va="bottom",
                color="#666666",
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(num_sequences, [str(number) for number in num_sequences])
        axes.set_ylim(0, 1.25 * axes.get_ylim()[1])
        axes.set_xlabel("sequences at once")
        axes.set_ylabel("decode step in ms, compactions included")
        billions = (record["model"] or {}).get("parameters", 0) / 1e9
        name = (record["device"] or {}).get("name", "?")
        axes.set_title(f"Random weights, {billions:.1f}B, bfloat16, on {name}")
        axes.legend(loc="upper left")


def main() -> None:
    """Measure, write, show and print the record."""
    options = parser(__doc__)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--seconds", type=float, default=SECONDS, help="for all (default 570)")
    options.add_argument("--group", help="run these cases here, and write nothing else")
    options.add_argument("--out", type=Path, help="where --group writes what it measures")
    given = options.parse_args()
    if given.device == "cpu" and not given.quick:
        # Not an error, so that all benchmarks can be run in sequence; no record is touched.
        reason = "no GPU is here; --quick runs a tiny model on the CPU"
        print(f"nothing was measured: {reason}", file=sys.stderr)
        print(json.dumps({"benchmark": "gpu", "not_measured": reason}))
        return
    torch.set_num_threads(given.threads)
    if given.group:
        sizes = Sizes(quick=given.quick, device=given.device)
        print(json.dumps(run_group(given.group.split(","), sizes, given.out)))
        return
    console = Console(stderr=True, width=140)
    record = measure(given, console)
    show(record, console)
    folder = results(quick=given.quick)
    write_record(folder / "gpu.json", record)
    try:
        plot(record, folder / "gpu.png")
    except MissingExtraError as error:
        console.print(f"no plot: {error}")
    print(json.dumps(record))


if __name__ == "__main__":
    sys.exit(main())
