"""Quality: perplexity of several texts with several caches of one budget.

Metric: exp of the mean negative log-likelihood of the tokens after the caches are full, prefilled
chunk by chunk, each token scored given what the cache holds; and the paired difference to
StreamingLLM in per cent, with its standard error. The demo's own text is left out, so that its
default can be chosen here.
"""

import argparse
import json
import math
import time
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.progress import Progress

from lacache.cache import LaCache
from lacache.common.records import environment, write_record
from lacache.corpora import load_document
from lacache.evals.monitor import CacheMonitor
from lacache.evals.perplexity import difference, perplexity, score_tokens
from lacache.evals.provenance import model_record, policy_record, tokens_sha256
from lacache.models import load_model
from lacache.policies import Full, Ladder, Policy, Streaming, default_span_overlap

RESULT = Path(__file__).parent / "results" / "perplexity.json"
TEXTS = (
    "shakespeare:macbeth",
    "shakespeare:twelfth_night",
    "wikipedia:Abraham Lincoln",
    "wikipedia:Algae",
)
CAPACITY = 512
EVICT_BATCH = 64


def policies(num_layers: int) -> dict[str, Policy]:
    """What is compared; the first bounded one is what the others are held against."""
    span, overlap = default_span_overlap(num_layers)
    half = num_layers // 2

    def ladder(span: int, overlap: int, evict_batch: int = EVICT_BATCH, **settings: int) -> Ladder:
        return Ladder(span=span, overlap=overlap, evict_batch=evict_batch, **settings)

    return {
        "full cache": Full(),
        "StreamingLLM": Streaming(evict_batch=EVICT_BATCH),
        "ladder, default rule": ladder(span, overlap),
        "ladder, default rule, evict_batch 16": ladder(span, overlap, evict_batch=16),
        "ladder, default rule, recent 3/4": ladder(span, overlap, recent=3 * CAPACITY // 4),
        "ladder, default rule, recent 1/4": ladder(span, overlap, recent=CAPACITY // 4),
        "ladder, gentlest overlap": ladder(half, half - 1),
        "ladder, overlap 0": ladder(half, 0),
        "ladder, overlap 0, recent 30": ladder(half, 0, recent=30),
    }


def main() -> None:
    """Read every text with every cache, write and print the record."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tokens", type=int, default=4096)
    options.add_argument("--threads", type=int, default=1)
    given = options.parse_args()
    loaded = load_model(threads=given.threads)
    about = model_record(loaded.model, loaded.name)
    chosen = policies(about["num_layers"])
    rows = []
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("reading", total=len(TEXTS) * len(chosen) * given.tokens)
        for name in TEXTS:
            content = load_document(name).content
            token_ids = loaded.tokenizer(content, verbose=False)["input_ids"][: given.tokens]
            base: list[float] = []
            for label, policy in chosen.items():
                progress.update(task, description=f"{name}, {label}")
                capacity = CAPACITY if policy.takes_budget else None
                cache = LaCache(loaded.model, capacity, policy)
                monitor = CacheMonitor(
                    loaded.model,
                    cache,
                    capacity=capacity,
                    on_tokens=lambda n: progress.advance(task, n),
                )
                begun = time.perf_counter()
                with monitor.monitoring():
                    nll = score_tokens(loaded.model, token_ids, cache, chunk_size=EVICT_BATCH)
                seconds = time.perf_counter() - begun
                scored = nll[CAPACITY - 1 :]
                if isinstance(policy, Streaming):
                    base = scored
                row = {
                    "text": name,
                    "tokens": len(token_ids),
                    "tokens_sha256": tokens_sha256(token_ids),
                    "label": label,
                    "policy": policy_record(policy),
                    "perplexity": round(perplexity(scored), 4),
                    "mean_bytes": round(monitor.mean_bytes),
                    "peak_bytes": round(monitor.peak_bytes),
                    "tokens_per_second": round(len(token_ids) / seconds, 1),
                }
                if base:
                    gap = difference(scored, base)
                    row["against_streaming_percent"] = round(100 * math.expm1(gap.mean), 3)
                    row["standard_error_percent"] = round(100 * gap.error, 3)
                rows.append(row)
                progress.console.print(row["text"], row["label"], row["perplexity"])
    means = {
        label: round(fmean(r["against_streaming_percent"] for r in rows if r["label"] == label), 3)
        for label, policy in chosen.items()
        if not isinstance(policy, Full)
    }
    record = {
        "benchmark": "perplexity",
        "prefill": "chunked",
        "model": about,
        "capacity": CAPACITY,
        "chunk_size": EVICT_BATCH,
        "scored_from_token": CAPACITY,
        "mean_against_streaming_percent": means,
        "rows": rows,
        "environment": environment(),
    }
    write_record(RESULT, record)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
