"""Chunks: what the cache costs while a long prompt is prefilled.

Metric: tokens per second of prefilling 8,192 tokens in chunks of 256 at a budget of 512, with the
default policy, over those of StreamingLLM (target 1.0) and of bare forwards (target 0.85). A bare
forward is the same chunk with as many keys before it as make its queries attend to as many keys as
the policy's do on average; nothing is stored or compacted. And with evict_batch 1, over the default
policy (target 0.8). Weights as they are in the file. Ways take turns; medians.
"""

import json
import statistics
import time
from collections import defaultdict
from typing import Any, final

import torch
from _fresh import parser, results
from _steppers import CHUNK_SIZE, bind, random_tokens
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from transformers import Cache

from lacache.cache.static.attention import AttendingLayer, fused
from lacache.common.records import Record, environment, write_record
from lacache.engine.runner import Runner
from lacache.evals.provenance import model_record
from lacache.kernels.build import load_kernels
from lacache.models import load_model
from lacache.models.decoder import cache_argument
from lacache.policies import DEFAULT_POLICY

BUDGET = 512
POLICIES = {
    "default": DEFAULT_POLICY,
    "streaming": "streaming",
    "default, evict_batch 1": f"{DEFAULT_POLICY}:evict_batch=1",
    "ladder, evict_batch 1": "ladder:evict_batch=1",
}
BARE = "bare forwards"
TARGETS = (
    ("default", "streaming", 1.0),
    ("default", BARE, 0.85),
    ("default, evict_batch 1", "default", 0.8),
    ("ladder, evict_batch 1", "default", 0.8),
)


@final
class BareLayer(AttendingLayer):
    """Attention of the kernel to the same old keys and to the chunk's own."""

    def __init__(self, old: Tensor, num_new: int) -> None:
        super().__init__(fused)
        num_heads, num_old, size = old.shape
        self._old = old.reshape(-1, size)
        self._first = torch.arange(num_heads) * num_old
        self._counts = [num_old] * num_heads
        ages = torch.arange(num_old + num_new)
        firsts, ends = (ages - num_old).clamp(min=0), torch.full_like(ages, num_new)
        self._seen = [torch.stack([ages, ages, firsts, ends], dim=1).int()] * num_heads
        self._others = [self._old[:0]] * num_heads

    def insert(self, keys: Tensor, values: Tensor) -> None:
        """Hold the chunk's keys and values for this forward."""
        self._new = keys, values

    def attend(self, module: nn.Module, query: Tensor, options: dict[str, Any]) -> Tensor:
        """Attend to all of them."""
        stored = self._old, self._old, self._first, self._counts
        scaling = options["scaling"]
        output: Tensor = torch.ops.lacache.attend_chunk(
            query, *stored, *self._new, self._others, self._seen, scaling
        )
        return output


@torch.no_grad()
def prefill_bare(runner: Runner, num_old: int, tokens: Tensor) -> None:
    """Run a forward for each chunk of tokens [T], whose cache never changes."""
    info = runner.layout.info
    for start in range(0, len(tokens), CHUNK_SIZE):
        chunk = tokens[start : start + CHUNK_SIZE]
        layers: list[Any] = [
            BareLayer(
                torch.zeros(each.num_heads, num_old, each.key_size, dtype=info.dtype), len(chunk)
            )
            for each in info.growing
        ]
        cache = cache_argument(runner._model, Cache(layers=layers))
        positions = torch.arange(num_old, num_old + len(chunk))[None]
        options = {"use_cache": True, "logits_to_keep": 1, **cache}
        runner._model(input_ids=chunk[None], position_ids=positions, **options)


def prefill(runner: Runner, tokens: Tensor) -> int:
    """Prefill tokens [T] into an empty cache; return the number of forwards."""
    runner.cache.clear(0)
    forwards = 0
    while len(tokens):
        length = runner.cache.chunk_length(0, min(len(tokens), CHUNK_SIZE))
        runner.prefill(0, tokens[:length])
        tokens = tokens[length:]
        forwards += 1
    return forwards


def mean_keys(runner: Runner, num_tokens: int) -> float:
    """Return how many keys a query attends to, over all tokens and KV heads."""
    total = heads = 0
    for group in runner.layout.bound.groups:
        state = group.schedule.start()
        seen = 0
        while state.num_seen < num_tokens:
            state = group.schedule.settle(state).insert(1)
            seen += state.num_cached
        total += seen * group.num_heads
        heads += group.num_heads
    return total / heads / num_tokens


def main() -> None:
    """Measure every way in turns, write and print the record."""
    options = parser(__doc__)
    options.add_argument("--model", help="a GGUF file; default: the default model")
    options.add_argument("--tokens", type=int, default=8192)
    options.add_argument("--runs", type=int, default=3)
    given = options.parse_args()
    num_tokens, runs = (1024, 1) if given.quick else (given.tokens, given.runs)
    torch.set_num_threads(given.threads)
    load_kernels()
    loaded = load_model(given.model, threads=given.threads, weights="file")
    runners = {
        name: Runner(
            loaded.model,
            bind(loaded.model, policy, BUDGET, with_profile=True),
            1,
            None,
            kernels=True,
        )
        for name, policy in POLICIES.items()
    }
    tokens = random_tokens(loaded.model, num_tokens)
    num_keys = mean_keys(runners["default"], num_tokens)
    num_old = round(num_keys - (CHUNK_SIZE + 1) / 2)
    seconds: dict[str, list[float]] = defaultdict(list)
    forwards = {}
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=runs * (len(POLICIES) + 1))
        for number in range(runs):
            for name in (*POLICIES, BARE):
                progress.update(task, description=f"run {number + 1}, {name}", advance=1)
                started = time.perf_counter()
                if name == BARE:
                    prefill_bare(runners["default"], num_old, tokens)
                else:
                    forwards[name] = prefill(runners[name], tokens)
                seconds[name].append(time.perf_counter() - started)
    rows: list[Record] = [
        {
            "way": name,
            "policy": None if name == BARE else str(runners[name].layout.bound.policy),
            "forwards": forwards.get(name),
            "tokens_per_second": round(num_tokens / statistics.median(taken), 2),
            "runs": [round(num_tokens / each, 2) for each in taken],
        }
        for name, taken in seconds.items()
    ]
    speed = {row["way"]: row["tokens_per_second"] for row in rows}
    record = {
        "benchmark": "chunks",
        "model": model_record(loaded.model, loaded.name),
        "tokens": num_tokens,
        "budget": BUDGET,
        "chunk_size": CHUNK_SIZE,
        "mean_keys": round(num_keys, 1),
        "threads": given.threads,
        "rows": rows,
        "targets": [
            {
                "way": way,
                "over": other,
                "ratio": round(speed[way] / speed[other], 3),
                "target": least,
            }
            for way, other, least in TARGETS
        ],
        "environment": environment(),
    }
    name = "chunks" if given.model is None else f"chunks-{loaded.name.lower()}"
    write_record(results(quick=given.quick) / f"{name}.json", record)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
