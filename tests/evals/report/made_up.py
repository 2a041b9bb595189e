"""Records as the harness writes them, with numbers made up by a seeded generator."""

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from lacache.common.records import Record
from lacache.evals.intervals import mean_interval
from lacache.evals.perplexity import buckets, doubling_edges, perplexity
from lacache.evals.runs import HARNESS

PER_TOKEN = 1000
"""Bytes of a token over all layers."""
POLICIES: dict[str, Record] = {
    "full": {"name": "full"},
    "streaming": {"name": "streaming", "sinks": 4, "evict_batch": 0.125},
    "ladder": {"name": "ladder", "span": 15, "overlap": 12, "evict_batch": 0.125},
    "tova": {"name": "tova", "sinks": 4},
}
MODEL = {
    "name": "tiny",
    "architecture": "LlamaForCausalLM",
    "dtype": "float32",
    "trained_context": 1024,
    "weights_sha256": "ab" * 32,
}
ENVIRONMENT = {
    "lacache": "0.1",
    "python": "3.11",
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "commit": "c" * 40,
    "processor": "made up",
    "threads": 1,
    "time": "2026-01-01T00:00:00+00:00",
}


def eval_record(
    policy: str | Record = "ladder",
    *,
    scores: Sequence[float] = (1.0, 0.0, 1.0, 1.0),
    losses: Sequence[float] | None = None,
    budget: str = "0.25",
    task: str | Record = "passkey",
    length: int = 1000,
    seed: int = 0,
    prefill: str = "chunked",
    first_token: str = "cache",
    bytes_factor: float = 1.0,
    depths: Sequence[float] | None = None,
    samples: str = "",
    **changes: Any,
) -> Record:
    """A run of the harness in which a share of the prompt is the budget."""
    policy = POLICIES[policy] if isinstance(policy, str) else policy
    task = {"name": task} if isinstance(task, str) else task
    losses = [1.0 - score for score in scores] if losses is None else losses
    share = 1.0 if policy["name"] == "full" else float(budget)
    full = length * PER_TOKEN
    sizes = {
        "capacity": share * length,
        "peak_bytes": share * full,
        "mean_bytes": share * full * bytes_factor * (0.5 if share == 1 else 0.9),
        "full_bytes": full,
    }
    answered = [
        {
            "score": score,
            "nll": loss,
            "answers": ["7"],
            "predictions": ["7"],
            "prompt_tokens": length,
            **sizes,
            "info": {} if depths is None else {"depth": depths[i % len(depths)]},
        }
        for i, (score, loss) in enumerate(zip(scores, losses, strict=True))
    ]
    inputs = json.dumps([task, length, seed, len(scores), samples])
    record = {
        "kind": "eval",
        "harness": HARNESS,
        "task": task,
        "length": length,
        "count": len(scores),
        "seed": seed,
        "policy": policy,
        "budget": budget,
        "prefill": prefill,
        "first_token": first_token,
        "model": MODEL,
        "samples_sha256": hashlib.sha256(inputs.encode()).hexdigest(),
        "score": fmean(scores),
        "score_interval": list(mean_interval(scores)),
        "nll": fmean(losses),
        "nll_interval": list(mean_interval(losses)),
        **sizes,
        "samples": answered,
        "seconds": 1.5,
        "environment": ENVIRONMENT,
        **changes,
    }
    return {"key": hashlib.sha256(json.dumps(record).encode()).hexdigest(), **record}


def ppl_record(
    policy: str | Record = "ladder",
    *,
    nll: Sequence[float],
    budget: str = "256",
    text: str = "made up",
    bytes_factor: float = 1.0,
    **changes: Any,
) -> Record:
    """A run of the harness over a document."""
    policy = POLICIES[policy] if isinstance(policy, str) else policy
    tokens = len(nll) + 1
    held = tokens if policy["name"] == "full" else min(int(budget), tokens)
    record = {
        "kind": "ppl",
        "harness": HARNESS,
        "task": {"name": "ppl", "text": text},
        "length": tokens,
        "count": 1,
        "seed": 0,
        "policy": policy,
        "budget": budget,
        "prefill": "chunked",
        "first_token": "cache",
        "model": MODEL,
        "samples_sha256": hashlib.sha256(f"{text} {tokens}".encode()).hexdigest(),
        "perplexity": perplexity(nll),
        "perplexity_interval": [0.98 * perplexity(nll), 1.02 * perplexity(nll)],
        "by_position": [list(b) for b in buckets(nll, doubling_edges(256, tokens))],
        "nll": list(nll),
        "capacity": held,
        "peak_bytes": held * PER_TOKEN,
        "mean_bytes": 0.9 * held * PER_TOKEN * bytes_factor,
        "full_bytes": tokens * PER_TOKEN,
        "seconds": 1.5,
        "environment": ENVIRONMENT,
        **changes,
    }
    return {"key": hashlib.sha256(json.dumps(record).encode()).hexdigest(), **record}


def write_lines(path: Path, records: Sequence[Record]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def study(
    *,
    draws: int = 5,
    variants: int = 1,
    tokens: int = 200,
    lengths: Sequence[int] = (1000, 2000),
    budgets: Sequence[str] = ("0.125", "0.5"),
) -> list[Record]:
    """Many runs of several tasks, lengths, budgets and policies, and of a document."""
    chance = random.Random(0)
    depths = [0.0, 0.25, 0.5, 0.75, 1.0]
    ladders = [
        POLICIES["ladder"] | {"span": 15 - i, "recent": round(i / 10, 1)} for i in range(variants)
    ]
    records: list[Record] = []
    tasks: list[str | Record] = ["passkey", "needle", {"name": "ruler", "task": "niah_single_1"}]
    for task in tasks:
        for length in lengths:
            shown = depths if task == "needle" else None
            known = {"task": task, "length": length, "depths": shown}

            def scores(chances: float) -> list[float]:
                return [float(chance.random() < chances) for _ in range(20)]

            records.append(eval_record("full", scores=scores(0.95), budget="1.0", **known))
            for budget in budgets:
                share = float(budget)
                near = [float(depths[i % 5] >= 1 - share) for i in range(20)]
                records.append(eval_record("streaming", scores=near, budget=budget, **known))
                for i, ladder in enumerate(ladders):
                    score = scores(share**0.3 - 0.01 * i)
                    records.append(eval_record(ladder, scores=score, budget=budget, **known))
                tova = scores(share**0.6)
                records.append(
                    eval_record("tova", scores=tova, budget=budget, bytes_factor=1.1, **known)
                )
    easy = [chance.gauss(2.8, 0.4) for _ in range(tokens - 1)]
    far = [v + (0.0 if i < 1024 else (i - 1024) / 1500) for i, v in enumerate(easy)]
    records.append(ppl_record("full", nll=far, budget="1.0"))
    for budget in ("256", "512"):
        cost = 30 / int(budget)
        for name, more in (("streaming", cost), ("ladder", 0.8 * cost), ("tova", 1.2 * cost)):
            losses = [v + more + chance.gauss(0, 0.05) for v in easy]
            records.append(ppl_record(name, nll=losses, budget=budget))
        for seed in range(draws):
            drawn = POLICIES["ladder"] | {"name": "random-ladder", "seed": seed}
            more = cost * chance.uniform(0.7, 2.0)
            losses = [v + more for v in easy]
            factor = chance.uniform(0.97, 1.03)
            records.append(ppl_record(drawn, nll=losses, budget=budget, bytes_factor=factor))
    return records
