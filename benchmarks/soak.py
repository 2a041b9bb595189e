"""Soak: 200,000 tokens out of the endless loop, with memory watched.

Metric: resident memory of the process, sampled every 1,000 tokens; after a warm-up of 20,000
tokens, the largest deviation from the first sample, in per cent (at most 1 is a pass), next to
the bytes of the cache. The model is tiny and random: its size does not matter to what grows.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.progress import Progress
from transformers import LlamaConfig, LlamaForCausalLM

from lacache import LaCache, Ladder
from lacache.common.records import environment, write_record
from lacache.engine.cache_stream import stream
from lacache.engine.sampling import Sampling
from lacache.evals.provenance import model_record, policy_record

RESULT = Path(__file__).parent / "results" / "soak.json"
POLICY = Ladder(span=2, overlap=1, evict_batch=1)
CAPACITY = 64
TOKENS = 200_000
WARM_UP = 20_000
EVERY = 1_000
ALLOWED_PERCENT = 1.0


def tiny_model() -> LlamaForCausalLM:
    """Four layers of 32, with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
    )
    return LlamaForCausalLM(config).eval()


def main() -> int:
    """Stream, watch, write and print the record; 1 if memory was not flat."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tokens", type=int, default=TOKENS)
    given = options.parse_args()
    torch.set_num_threads(1)
    model = tiny_model()
    cache = LaCache(model, CAPACITY, POLICY)
    process = psutil.Process()
    prompt = torch.arange(1, 9)[None]
    tokens = stream(
        model,
        prompt,
        cache,
        max_new_tokens=given.tokens,
        sampling=Sampling(temperature=1.0, seed=0),
    )
    samples = []
    begun = time.perf_counter()
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("tokens", total=given.tokens)
        for written, _ in enumerate(tokens, 1):
            if written % EVERY == 0:
                samples.append((written, process.memory_info().rss, cache.report().bytes))
                progress.update(task, completed=written)
    seconds = time.perf_counter() - begun
    report = cache.report()
    warm = [rss for written, rss, _ in samples if written >= min(WARM_UP, given.tokens // 2)]
    deviation = max(abs(rss / warm[0] - 1) for rss in warm) * 100
    record = {
        "benchmark": "soak",
        "model": model_record(model, "tiny random Llama"),
        "policy": policy_record(POLICY),
        "capacity": CAPACITY,
        "tokens": given.tokens,
        "warm_up": WARM_UP,
        "compactions": report.compactions,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(given.tokens / seconds, 1),
        "deviation_percent": round(deviation, 4),
        "allowed_percent": ALLOWED_PERCENT,
        "is_flat": deviation <= ALLOWED_PERCENT,
        "cache_bytes_largest": max(num_bytes for _, _, num_bytes in samples),
        "samples": samples,
        "environment": environment(),
    }
    write_record(RESULT, record)
    print(json.dumps(record))
    return 0 if record["is_flat"] else 1


if __name__ == "__main__":
    sys.exit(main())
