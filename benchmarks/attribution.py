"""Attribution: how good is the order of KV heads that calibration gives?

Metric: the share of what windows in all heads cost which is left on held-out probes, when the first
heads of the order keep all tokens and the others have windows. With `--out` the head profile is
written to a file.
"""

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from torch.nn.functional import cross_entropy

from lacache.calibration.attribution import POINTS, Pair, attributions, rank
from lacache.calibration.emulation import Emulation
from lacache.calibration.probes import KINDS, Probe, make_probes
from lacache.common.records import environment, write_record
from lacache.corpora import load_document
from lacache.evals.provenance import model_record
from lacache.models import load_model
from lacache.models.fingerprint import fingerprint
from lacache.policies.head_profile import HeadProfile, profile_json

RESULT = Path(__file__).parent / "results" / "attribution.json"
TEXT, HELD_OUT = "wikipedia:Algae", "wikipedia:Anarchism"
HELD_OUT_KINDS = ("lines", "numbers", "filler")
WINDOW, SINKS = 64, 4
COUNTS = (3, 6, 9, 14, 20)


def gradient(emulation: Emulation, probe: Probe, point: float) -> Tensor:
    """Return the derivatives [L, H] of a probe's loss, in nats per answer token."""
    positions, targets = torch.tensor(probe.positions()), torch.tensor(probe.targets())
    mixing = emulation.coefficients(point)
    return emulation.gradient(probe.token_ids, positions, targets, mixing)[1]


def losses(
    emulation: Emulation, probe: Probe, order: Sequence[Pair], counts: Iterable[int]
) -> list[float]:
    """Return the loss of a probe's answers when the first heads of an order keep all tokens."""
    found = []
    for count in counts:
        mixing = emulation.coefficients()
        for pair in order[:count]:
            mixing[pair] = 1.0
        logits = emulation.logits(probe.token_ids, torch.tensor(probe.positions()), mixing)
        found.append(float(cross_entropy(logits, torch.tensor(probe.targets()))))
    return found


def main() -> None:
    """Attribute, measure what is left on held-out probes, and write the record."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model")
    options.add_argument("--length", type=int, default=400)
    options.add_argument("--per-kind", type=int, default=1)
    options.add_argument("--points", default=",".join(map(str, POINTS)))
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--out", type=Path, help="file for the head profile")
    given = options.parse_args()
    loaded = load_model(given.model, threads=given.threads, dtype="float32")
    model: Any = loaded.model
    emulation = Emulation(model, window=WINDOW, sinks=SINKS)
    num_heads = emulation.num_heads
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
            cost = attributions(partial(gradient, emulation, probe), points)
            # Probes count alike, however much windows cost in them.
            shares.append(cost / cost.sum().clamp_min(0.1))
            console.print(probe.kind, f"{float(cost.sum()):.2f} nats, {_seconds(start)} s")
    seconds = _seconds(start)
    importance = torch.stack(shares).mean(0)
    order = rank(importance, num_heads)
    console.print("first heads:", *order[:12])
    counts = [0, *(count for count in COUNTS if count < len(order)), len(order)]
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
