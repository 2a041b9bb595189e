"""What weights in fewer bits cost and save: perplexity, bytes and speed, side by side.

Metrics: exp of the mean negative log-likelihood of a text's tokens, read in chunks into a cache
that holds them all; the paired difference to the model's own type in per cent, with its standard
error; bytes of all weights over the bytes of the file; and tokens per second of prefill and of
decoding, medians of runs in turns.

    python benchmarks/weights.py
    python benchmarks/weights.py --model FILE.gguf
"""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from _fresh import parser, results
from rich.console import Console
from rich.progress import Progress
from torch.nn.functional import cross_entropy

from lacache import Engine
from lacache.common.records import Record, environment, write_record
from lacache.corpora import load_document
from lacache.engine.runner import Runner
from lacache.evals.perplexity import difference, perplexity
from lacache.evals.provenance import model_record, tokens_sha256
from lacache.models import DEFAULT_MODEL, LoadedModel, load_model
from lacache.policies import Streaming

TEXTS = ("shakespeare:macbeth", "wikipedia:Algae")
KINDS = (None, "file", "int4")
CHUNK_SIZE = 16
"""So few that activations are rounded, as in decode steps."""


def num_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of a model's weights, each tensor once."""
    tensors = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}
    return sum(tensors.values())


def score(loaded: LoadedModel, ids: Sequence[int]) -> list[float]:
    """Return the negative log-likelihoods in nats of tokens 1, 2, ... of a text."""
    engine = Engine(loaded.model, len(ids), Streaming())
    runner: Runner = engine.scheduler.runner
    tokens = torch.tensor(ids)
    nll: list[float] = []
    for start in range(0, len(ids), CHUNK_SIZE):
        logits = runner.prefill_all_logits(0, tokens[start : start + CHUNK_SIZE])
        targets = tokens[start + 1 : start + 1 + len(logits)]
        nll += cross_entropy(logits[: len(targets)].float(), targets, reduction="none").tolist()
    return nll


def speed(loaded: LoadedModel, prompt: Sequence[int], num_new: int) -> tuple[float, float]:
    """Return tokens per second of prefill and of decoding, with a cache that holds all."""
    engine = Engine(loaded.model, len(prompt) + num_new, Streaming())
    engine.warm_up()
    started = time.perf_counter()
    stream = engine.submit(prompt, max_new_tokens=num_new + 1)
    next(stream)
    first = time.perf_counter()
    for _ in stream:
        pass
    return len(prompt) / (first - started), num_new / (time.perf_counter() - first)


def main() -> None:
    """Measure every kind of weights in turns, write and print the record."""
    options = parser(__doc__)
    options.add_argument("--model", help="a GGUF file; default: the default model")
    options.add_argument("--tokens", type=int, default=2048, help="of each text")
    options.add_argument("--runs", type=int, default=5)
    given = options.parse_args()
    num_tokens, num_new, runs = given.tokens, 64, given.runs
    if given.quick:
        num_tokens, num_new, runs = 128, 4, 1
    file = DEFAULT_MODEL.locate() if given.model is None else Path(given.model)
    models = {
        kind or "model": load_model(
            given.model, dtype="bfloat16", threads=given.threads, weights=kind
        )
        for kind in KINDS
    }
    rows: dict[str, Record] = {
        kind: {
            "weights": kind,
            "bytes": num_bytes(loaded.model),
            "bytes_over_file": round(num_bytes(loaded.model) / file.stat().st_size, 3),
            "texts": [],
        }
        for kind, loaded in models.items()
    }
    tokenizer = models["model"].tokenizer
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(models) * (len(TEXTS) + runs))
        for text in TEXTS:
            ids = tokenizer(load_document(text).content, verbose=False)["input_ids"][:num_tokens]
            own: list[float] = []
            for kind, loaded in models.items():
                progress.update(task, description=f"{text}, {kind}", advance=1)
                nll = score(loaded, ids)
                own = own or nll
                gap = difference(nll, own)
                rows[kind]["texts"].append(
                    {
                        "text": text,
                        "tokens_sha256": tokens_sha256(ids),
                        "perplexity": round(perplexity(nll), 4),
                        "against_model_percent": round(100 * math.expm1(gap.mean), 3),
                        "standard_error_percent": round(100 * gap.error, 3),
                    }
                )
        speeds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in models}
        prompt = ids[: num_tokens // 4]
        for number in range(runs):
            for kind, loaded in models.items():
                progress.update(task, description=f"speed, run {number + 1}, {kind}", advance=1)
                speeds[kind].append(speed(loaded, prompt, num_new))
    for kind, measured in speeds.items():
        for name, values in zip(("prefill", "decode"), zip(*measured, strict=True), strict=True):
            rows[kind][f"{name}_tokens_per_second"] = round(median(values), 2)
            rows[kind][f"{name}_runs"] = [round(value, 2) for value in values]
    record = {
        "benchmark": "weights",
        "model": model_record(models["model"].model, models["model"].name),
        "file_bytes": file.stat().st_size,
        "tokens": num_tokens,
        "prompt_tokens": len(prompt),
        "threads": given.threads,
        "rows": list(rows.values()),
        "environment": environment(),
    }
    name = "weights" if given.model is None else f"weights-{models['model'].name.lower()}"
    write_record(results(quick=given.quick) / f"{name}.json", record)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
