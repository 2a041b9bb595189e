"""What keys and values in fewer bits cost: perplexity at equal tokens and at equal bytes.

Metric: exp of the mean negative log-likelihood of the tokens from the 512th on, prefilled
chunk by chunk, each token scored given what the buffers hold; the paired difference to the
model's own type in per cent, with its standard error; and the bytes of a slot, which count the
model's own type as 16 bits, whatever type it computes in here.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean

import torch
from _steppers import bind
from rich.console import Console
from rich.progress import Progress
from torch.nn.functional import cross_entropy

from lacache.cache.codecs import find_codecs
from lacache.common.records import environment, write_record
from lacache.common.validation import KV_DTYPES
from lacache.corpora import load_document
from lacache.engine.runner import Runner
from lacache.evals.perplexity import difference, perplexity
from lacache.evals.provenance import model_record, tokens_sha256
from lacache.models import load_model
from lacache.models.model_info import ModelInfo, model_info
from lacache.policies import DEFAULT_POLICY

RESULT = Path(__file__).parent / "results" / "kv_dtype.json"
TEXTS = ("shakespeare:macbeth", "wikipedia:Algae")
POLICIES = (DEFAULT_POLICY, "ladder", "streaming")
BUDGET = 512
CHUNK_SIZE = 128
SHOWN = ("text", "policy", "kv_dtype", "budget", "perplexity", "against_own_type_percent")


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
        most = min(CHUNK_SIZE, len(token_ids) - start)
        stop = start + runner.cache.chunk_length(0, most)
        logits = runner.prefill_all_logits(0, ids[start:stop])
        targets = ids[start + 1 : stop + 1]
        nll += cross_entropy(logits[: len(targets)].float(), targets, reduction="none").tolist()
        advance(stop - start)
        start = stop
    return nll


def equal_budget(info: ModelInfo, kv_dtype: str | None) -> int:
    """Return the tokens of a type in the bytes that `BUDGET` tokens take in 16 bits."""
    layer = info.growing[0]
    own, narrow = (
        sum(
            codec.vector_bytes(size)
            for codec, size in zip(
                find_codecs(name, torch.bfloat16),
                (layer.key_size, layer.value_size),
                strict=True,
            )
        )
        for name in (None, kv_dtype)
    )
    return BUDGET * own // narrow


def main() -> None:
    """Read every text with every policy and type, write and print the record."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model")
    options.add_argument("--policy", action="append", help=f"default: {', '.join(POLICIES)}")
    options.add_argument("--tokens", type=int, default=4096)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--dtype", default="float32")
    given = options.parse_args()
    policies = given.policy or list(POLICIES)
    loaded = load_model(given.model, threads=given.threads, dtype=given.dtype)
    info = model_info(loaded.model)
    runs = [(name, BUDGET) for name in (None, *KV_DTYPES)]
    runs += [(name, equal_budget(info, name)) for name in KV_DTYPES]
    rows = []
    with Progress(console=Console(stderr=True)) as progress:
        total = len(TEXTS) * len(policies) * len(runs) * given.tokens
        task = progress.add_task("reading", total=total)
        for name, policy in product(TEXTS, policies):
            content = load_document(name).content
            token_ids = loaded.tokenizer(content, verbose=False)["input_ids"][: given.tokens]
            own: list[float] = []
            for kv_dtype, budget in runs:
                progress.update(task, description=f"{name}, {policy}, {kv_dtype}")
                bound = bind(loaded.model, policy, budget, with_profile=policy == DEFAULT_POLICY)
                runner = Runner(loaded.model, bound, 1, None, kv_dtype)
                nll = score(runner, token_ids, lambda n: progress.advance(task, n))
                scored = nll[BUDGET - 1 :]
                own = own or scored
                gap = difference(scored, own)
                row = {
                    "text": name,
                    "tokens": len(token_ids),
                    "tokens_sha256": tokens_sha256(token_ids),
                    "policy": policy,
                    "kv_dtype": kv_dtype or "own",
                    "budget": budget,
                    "perplexity": round(perplexity(scored), 4),
                    "against_own_type_percent": round(100 * math.expm1(gap.mean), 3),
                    "standard_error_percent": round(100 * gap.error, 3),
                }
                rows.append(row)
                progress.console.print(*(row[key] for key in SHOWN))
    costs = [
        {
            "policy": policy,
            "kv_dtype": kv_dtype or "own",
            "budget": budget,
            "mean_against_own_type_percent": round(
                fmean(
                    row["against_own_type_percent"]
                    for row in rows
                    if (row["policy"], row["kv_dtype"], row["budget"])
                    == (policy, kv_dtype or "own", budget)
                ),
                3,
            ),
        }
        for policy, (kv_dtype, budget) in product(policies, runs)
    ]
    record = {
        "benchmark": "kv_dtype",
        "prefill": "chunked",
        "model": model_record(loaded.model, loaded.name),
        "chunk_size": CHUNK_SIZE,
        "scored_from_token": BUDGET,
        "costs": costs,
        "rows": rows,
        "environment": environment(),
    }
    default = given.model is None
    write_record(RESULT if default else RESULT.with_stem(f"kv_dtype-{loaded.name.lower()}"), record)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
