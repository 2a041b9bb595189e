"""What keys and values in eight bits cost: perplexity of the same tokens in the engine.

Metric: exp of the mean negative log-likelihood of the tokens from the 512th on, prefilled
chunk by chunk, each token scored given what the buffers hold; the paired difference to the
model's own type in per cent, with its standard error; and the bytes of one sequence.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import torch
from _steppers import bind
from rich.console import Console
from rich.progress import Progress
from torch.nn.functional import cross_entropy

from lacache.cache.static.buffers import KV_DTYPES
from lacache.common.records import environment, write_record
from lacache.corpora import load_document
from lacache.engine.runner import Runner
from lacache.evals.perplexity import difference, perplexity
from lacache.evals.provenance import model_record, tokens_sha256
from lacache.models import load_model
from lacache.policies import DEFAULT_POLICY

RESULT = Path(__file__).parent / "results" / "kv_dtype.json"
TEXTS = ("shakespeare:macbeth", "wikipedia:Algae")
BUDGET = 512
CHUNK_SIZE = 128


def score(runner: Runner, token_ids: Sequence[int], advance: Callable[[int], None]) -> list[float]:
    """Negative log-likelihoods in nats of the tokens 1, 2, ..., read into an empty row.

    Args:
        runner: with one row.
        token_ids: a text.
        advance: called with the number of tokens after each forward.
    """
    ids = torch.tensor(token_ids)
    nll: list[float] = []
    start = 0
    while start < len(token_ids):
        stop = min(start + CHUNK_SIZE, start + runner.cache.sequences[0].room(), len(token_ids))
        logits = runner.prefill_all_logits(0, ids[start:stop])
        targets = ids[start + 1 : stop + 1]
        nll += cross_entropy(logits[: len(targets)].float(), targets, reduction="none").tolist()
        advance(stop - start)
        start = stop
    return nll


def main() -> None:
    """Read every text with every type, write and print the record."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tokens", type=int, default=4096)
    options.add_argument("--threads", type=int, default=1)
    given = options.parse_args()
    loaded = load_model(threads=given.threads)
    bound = bind(loaded.model, DEFAULT_POLICY, BUDGET, with_profile=True)
    kv_dtypes = (None, *KV_DTYPES)
    rows = []
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("reading", total=len(TEXTS) * len(kv_dtypes) * given.tokens)
        for name in TEXTS:
            content = load_document(name).content
            token_ids = loaded.tokenizer(content, verbose=False)["input_ids"][: given.tokens]
            own: list[float] = []
            for kv_dtype in kv_dtypes:
                progress.update(task, description=f"{name}, {kv_dtype}")
                runner = Runner(loaded.model, bound, 1, None, kv_dtype)
                nll = score(runner, token_ids, lambda n: progress.advance(task, n))
                scored = nll[BUDGET - 1 :]
                own = own or scored
                gap = difference(scored, own)
                row = {
                    "text": name,
                    "tokens": len(token_ids),
                    "tokens_sha256": tokens_sha256(token_ids),
                    "kv_dtype": kv_dtype or str(loaded.model.dtype).removeprefix("torch."),
                    "perplexity": round(perplexity(scored), 4),
                    "against_own_type_percent": round(100 * math.expm1(gap.mean), 3),
                    "standard_error_percent": round(100 * gap.error, 3),
                    "sequence_bytes": runner.layout.bytes_per_sequence,
                }
                rows.append(row)
                progress.console.print(name, row["kv_dtype"], row["perplexity"])
    costs = {
        kv_dtype: round(
            fmean(r["against_own_type_percent"] for r in rows if r["kv_dtype"] == kv_dtype), 3
        )
        for kv_dtype in KV_DTYPES
    }
    record = {
        "benchmark": "kv_dtype",
        "prefill": "chunked",
        "model": model_record(loaded.model, loaded.name),
        "budget": BUDGET,
        "policy": DEFAULT_POLICY,
        "chunk_size": CHUNK_SIZE,
        "scored_from_token": BUDGET,
        "mean_against_own_type_percent": costs,
        "rows": rows,
        "environment": environment(),
    }
    write_record(RESULT, record)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
