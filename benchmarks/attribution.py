"""Attribution: a model's retrieval heads from a few gradients, in place of thousands of forwards.

Each KV head's attention is mixed from its attention to everything and its attention to sinks and a
window, by a coefficient from 1 to 0. The gradients of the answers' loss with respect to all
coefficients, at points of the straight path from all 1 to all 0, average to Aumann-Shapley values:
what a window in each head costs, of what windows in all of them cost.

Metric: the share of that loss which is left on held-out probes when the first heads keep all tokens
and the others have windows. With `--out` the head profile is written to a file.
"""

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers import AttentionInterface

from lacache.calibration.emulation import Emulation, visible_tokens
from lacache.calibration.probes import KINDS, Probe, make_probes
from lacache.common.records import environment, write_record
from lacache.corpora import load_document
from lacache.evals.provenance import model_record
from lacache.models import load_model
from lacache.models.fingerprint import fingerprint
from lacache.models.model_info import model_info
from lacache.policies.head_profile import HeadProfile, profile_json

RESULT = Path(__file__).parent / "results" / "attribution.json"
TEXT, HELD_OUT = "wikipedia:Algae", "wikipedia:Anarchism"
HELD_OUT_KINDS = ("lines", "numbers", "filler")
WINDOW, SINKS = 64, 4
COUNTS = (3, 6, 9, 14, 20)
_NAME = "attribution"


def attributions(model: Any, probe: Probe, points: Iterable[float]) -> Tensor:
    """Return what a window in each KV head costs: [L, H], in nats per answer token."""
    info = model_info(model)
    mixing = torch.zeros(info.text_config.num_hidden_layers, max(info.num_heads))
    windowed = visible_tokens(len(probe.token_ids), WINDOW, SINKS)[0]

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Any, **options: Any
    ) -> tuple[Tensor, None]:
        shared = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(shared, dim=1) for t in (key, value))
        scale = options.get("scaling")
        full = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
        near = scaled_dot_product_attention(query, key, value, attn_mask=windowed, scale=scale)
        of_heads = mixing[module.layer_idx, : key.shape[1] // shared].repeat_interleave(shared)
        mixed = near + of_heads[:, None, None].to(full.dtype) * (full - near)
        return mixed.transpose(1, 2), None

    AttentionInterface.register(_NAME, attend)
    before = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    total = torch.zeros_like(mixing)
    try:
        chosen = list(points)
        for point in chosen:
            mixing = torch.full_like(mixing, point, requires_grad=True)
            logits = answer_logits(model, probe)
            loss = cross_entropy(logits, torch.tensor(probe.targets()))
            (gradient,) = torch.autograd.grad(loss, mixing)
            total -= gradient / len(chosen)
    finally:
        model.set_attn_implementation(before)
    return total[[layer.index for layer in info.growing]]


def answer_logits(model: Any, probe: Probe) -> Tensor:
    """Return the logits [N, V] that predict a probe's answers."""
    ids = torch.tensor([probe.token_ids])
    wanted = torch.tensor(probe.positions())
    logits: Tensor = model(input_ids=ids, use_cache=False, logits_to_keep=wanted).logits[0]
    return logits.float()


def most_important(values: Tensor, num_heads: Sequence[int]) -> list[tuple[int, int]]:
    """Return all pairs (layer, KV head), the most important first."""
    pairs = [(layer, head) for layer, n in enumerate(num_heads) for head in range(n)]
    return sorted(pairs, key=lambda pair: -float(values[pair]))


def losses(
    emulation: Emulation, probe: Probe, order: Sequence[tuple[int, int]], counts: Iterable[int]
) -> list[float]:
    """Return the loss of a probe's answers when the first heads of an order keep all tokens."""
    found = []
    for count in counts:
        keep = torch.zeros(len(emulation.num_heads), max(emulation.num_heads), dtype=torch.bool)
        for pair in order[:count]:
            keep[pair] = True
        logits = emulation.logits(probe.token_ids, torch.tensor(probe.positions()), keep)
        found.append(float(cross_entropy(logits, torch.tensor(probe.targets()))))
    return found


def main() -> None:
    """Attribute, measure what is left on held-out probes, and write the record."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model")
    options.add_argument("--length", type=int, default=600)
    options.add_argument("--per-kind", type=int, default=2)
    options.add_argument("--points", default="0.17,0.5,0.83")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--out", type=Path, help="file for the head profile")
    given = options.parse_args()
    loaded = load_model(given.model, threads=given.threads, dtype="float32")
    model: Any = loaded.model.requires_grad_(False)
    num_heads = model_info(model).num_heads
    points = [float(point) for point in given.points.split(",")]

    def probes(text: str, per_kind: int, seed: int) -> list[Probe]:
        haystack = load_document(text).content
        return make_probes(
            loaded.tokenizer, haystack, length=given.length, per_kind=per_kind, seed=seed
        )

    console = Console(stderr=True)
    start = time.perf_counter()
    shares = []
    with Progress(console=console) as progress:
        for probe in progress.track(probes(TEXT, given.per_kind, 0), description="gradients"):
            cost = attributions(model, probe, points)
            # Probes count alike, however much windows cost in them.
            shares.append(cost / cost.sum().clamp_min(0.1))
            console.print(probe.kind, f"{float(cost.sum()):.2f} nats, {_seconds(start)} s")
    seconds = _seconds(start)
    importance = torch.stack(shares).mean(0)
    order = most_important(importance, num_heads)
    console.print("first heads:", *order[:12])
    counts = [0, *(count for count in COUNTS if count < len(order)), len(order)]
    emulation = Emulation(model, window=WINDOW, sinks=SINKS)
    left = []
    held_out = [p for p in probes(HELD_OUT, 1, 1) if p.kind in HELD_OUT_KINDS]
    with Progress(console=console) as progress:
        for probe in progress.track(held_out, description="held-out"):
            found = losses(emulation, probe, order, counts)
            left.append([(loss - found[-1]) / (found[0] - found[-1]) for loss in found])
            console.print(probe.kind, [round(share, 3) for share in left[-1]])
    loss_left = [
        (n, round(fmean(v), 4)) for n, v in zip(counts, zip(*left, strict=True), strict=True)
    ]
    profile = HeadProfile(
        fingerprint=fingerprint(model),
        model=loaded.name,
        window=WINDOW,
        sinks=SINKS,
        importance=tuple(
            tuple(round(float(value), 5) for value in row[:n])
            for row, n in zip(importance, num_heads, strict=True)
        ),
        order=tuple(order),
        loss_left=tuple(loss_left),
    )
    if given.out is not None:
        given.out.write_text(json.dumps(profile_json(profile)) + "\n")
    record = {
        "benchmark": "attribution",
        "model": model_record(model, loaded.name),
        "length": given.length,
        "probes": dict.fromkeys(KINDS, given.per_kind),
        "points": points,
        "seconds": seconds,
        "held_out_kinds": HELD_OUT_KINDS,
        "loss_left": loss_left,
        "order": order[:20],
        "environment": environment(),
    }
    write_record(RESULT.with_stem(f"attribution-{loaded.name.lower()}"), record)
    print(json.dumps(record))


def _seconds(start: float) -> float:
    return round(time.perf_counter() - start, 1)


if __name__ == "__main__":
    main()
