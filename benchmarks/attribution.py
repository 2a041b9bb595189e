"""Attribution: how good is the order of KV heads that calibration gives?

Metric: the share of what windows in all heads cost which is left on held-out tasks, when the first
heads of an order keep all tokens and the others have windows. The tasks are of `lacache eval`:
their prompts with the right answers. Orders are compared with two that need forwards only.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.nn.functional import cross_entropy

from lacache.calibration.attribution import POINTS, Pair, attributions, rank
from lacache.calibration.emulation import Emulation, visible_tokens
from lacache.calibration.haystack import sample_haystack
from lacache.calibration.measure import LEAST_GAP
from lacache.calibration.probes import KINDS, Probe, make_probes
from lacache.calibration.store import Journal
from lacache.common.records import environment, write_record
from lacache.corpora import load_document
from lacache.evals.provenance import model_record
from lacache.evals.tasks.needles import MultiTurn, Needle
from lacache.evals.tasks.passkey import Passkey
from lacache.evals.tasks.ruler.niah import NIAH
from lacache.evals.tasks.ruler.tracing import CommonWords, VariableTracking
from lacache.evals.tasks.task import Sample
from lacache.models import load_model
from lacache.models.fingerprint import fingerprint

RESULTS = Path(__file__).parent / "results"
COUNTS = (3, 6, 9, 14, 20)
HELD_OUT = {
    "needle": Needle(haystack="wikipedia"),
    "passkey": Passkey(),
    "turns": MultiTurn(haystack="wikipedia"),
    "multikey": NIAH[4](max_new_tokens=16),
    "tracking": VariableTracking(),
    "common words": CommonWords(),
}


def task_probe(tokenizer: Any, kind: str, sample: Sample) -> Probe:
    """Return a prompt with its right answers."""
    ids: list[int] = tokenizer(sample.context).input_ids
    answers = []
    for question in sample.questions:
        words = question.answers
        numbered = " ".join(f"{i}. {word}" for i, word in enumerate(words, 1))
        answer = numbered if kind == "common words" else " ".join(words)
        ids += tokenizer(question.text, add_special_tokens=False).input_ids
        start = len(ids)
        ids += tokenizer(f" {answer}", add_special_tokens=False).input_ids
        answers.append((start, len(ids)))
    return Probe(kind, tuple(ids), tuple(answers))


@torch.no_grad()
def far_attention(model: Any, probe: Probe, window: int, sinks: int) -> Tensor:
    """Return the attention [L, H] from answers to what a window hides, by KV head."""
    hidden = ~visible_tokens(len(probe.token_ids), window, sinks)[0]
    model.set_attn_implementation("eager")
    try:
        output = model(torch.tensor([probe.token_ids]), output_attentions=True, use_cache=False)
    finally:
        model.set_attn_implementation("sdpa")
    positions = probe.positions()
    heads = model.config.num_key_value_heads
    mass = [
        (weights[0, :, positions].float() * hidden[positions]).sum(-1).mean(-1)
        for weights in output.attentions
    ]
    return torch.stack([layer.view(heads, -1).mean(-1) for layer in mass])


@torch.no_grad()
def mean_attention(model: Any, token_ids: Sequence[int], length: int = 500) -> Tensor:
    """Return how far back the mean query attends to the mean key, rotated, by KV head [L, H].

    Area under the accumulated attention, oldest first, as in kvpress's DuoAttention on the fly.
    """
    output = model(torch.tensor([token_ids]), output_hidden_states=True, use_cache=False)
    scores = []
    for layer, states in zip(model.model.layers, output.hidden_states, strict=False):
        attention, states = layer.self_attn, layer.input_layernorm(states)
        width = attention.head_dim
        query = attention.q_proj(states).view(-1, model.config.num_attention_heads, width).mean(0)
        key = attention.k_proj(states).view(-1, model.config.num_key_value_heads, width).mean(0)
        cos, sin = model.model.rotary_emb(states, torch.arange(length)[None])
        products = rotate(query[:, None], cos, sin)[:, -1:] @ rotate(
            key.repeat_interleave(len(query) // len(key), 0)[:, None], cos, sin
        ).transpose(1, 2)
        weights = (products[:, 0].float() / width**0.5).softmax(-1)
        scores.append(weights.cumsum(-1).mean(-1).view(len(key), -1).mean(-1))
    return torch.stack(scores)


def rotate(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate vectors [H, 1, D] to each position: [H, N, D]."""
    first, second = vectors.chunk(2, -1)
    return vectors * cos + torch.cat([-second, first], -1) * sin


def read_order(path: Path) -> list[Pair]:
    """Return the order of a profile, or the attribution's in a record of this benchmark."""
    record = json.loads(path.read_text())
    order = record["order"] if "order" in record else record["orders"]["attribution"]
    return [(layer, head) for layer, head in order]


class Measurer:
    """Measure scores and losses once each, also over several runs."""

    def __init__(self, model: Any, window: int, sinks: int, journal: Journal) -> None:
        self.emulation = Emulation(model, window=window, sinks=sinks)
        self._journal = journal
        self._prefix = f"window {window} "

    def score(self, key: str, measure: Callable[[], Tensor]) -> Tensor:
        """Return scores [L, H]."""
        values = self._journal.get(self._prefix + key, lambda: measure().flatten().tolist())
        return torch.tensor(values).view(self.emulation.coefficients().shape)

    def attribution(self, key: str, probe: Probe) -> Tensor:
        """Return attributions as shares of what windows in all heads cost."""
        positions, targets = torch.tensor(probe.positions()), torch.tensor(probe.targets())

        def gradient(point: float) -> Tensor:
            mixing = self.emulation.coefficients(point)
            return self.emulation.gradient(probe.token_ids, positions, targets, mixing)[1]

        found = self.score(f"attribution {key}", lambda: attributions(gradient))
        gap = self.loss(key, probe, self.order()) - self.loss(key, probe, [])
        return found / -gap if -gap * len(targets) / len(probe.answers) >= LEAST_GAP else 0 * found

    def order(self) -> list[Pair]:
        """Return all heads."""
        return rank(self.emulation.coefficients(), self.emulation.num_heads)

    def loss(self, key: str, probe: Probe, kept: Sequence[Pair]) -> float:
        """Return the loss in nats per token of the answers, where some heads keep all tokens."""
        mixing = self.emulation.coefficients()
        for pair in kept:
            mixing[pair] = 1.0

        def measure() -> list[float]:
            logits = self.emulation.logits(probe.token_ids, torch.tensor(probe.positions()), mixing)
            return [float(cross_entropy(logits, torch.tensor(probe.targets())))]

        kept_bits = "".join(str(int(value)) for value in mixing.flatten().tolist())
        return self._journal.get(f"{self._prefix}loss {key} {kept_bits}", measure)[0]


def main() -> None:
    """Rank the heads, measure what is left on held-out tasks, and write the record."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model")
    options.add_argument("--dtype", default="bfloat16")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--text", help="to hide probes in; sampled from the model by default")
    options.add_argument("--length", type=int, default=400)
    options.add_argument("--per-kind", type=int, default=1)
    options.add_argument("--window", type=int, default=64)
    options.add_argument("--sinks", type=int, default=4)
    options.add_argument("--samples", type=int, default=1, help="of each held-out task")
    options.add_argument("--held-out-length", type=int, default=700)
    options.add_argument("--kinds", action="append", default=[], help="an order of NAME=KIND,KIND")
    options.add_argument(
        "--order", action="append", default=[], help="NAME=FILE of a profile or a record"
    )
    options.add_argument("--no-forwards-only", action="store_true")
    options.add_argument("--journal", type=Path, required=True, help="file to resume from")
    options.add_argument("--out", type=Path, help="the record")
    given = options.parse_args()
    console = Console(stderr=True)
    loaded = load_model(given.model, threads=given.threads, dtype=given.dtype)
    model, tokenizer = loaded.model, loaded.tokenizer
    journal = Journal(given.journal, {"fingerprint": fingerprint(model), "dtype": given.dtype})
    measurer = Measurer(model, given.window, given.sinks, journal)
    num_heads = measurer.emulation.num_heads
    if given.text is None:
        (haystack,) = journal.get(
            f"sampled text {given.length}",
            lambda: [sample_haystack(model, tokenizer, num_tokens=given.length, seed=0)],
        )
    else:
        haystack = load_document(given.text).content
    probes = make_probes(tokenizer, haystack, length=given.length, per_kind=given.per_kind, seed=0)
    named = {
        f"{p.kind} {i // len(KINDS)} {given.text} {given.length}": p for i, p in enumerate(probes)
    }
    importance = {}
    for key, probe in named.items():
        importance[key] = measurer.attribution(key, probe)
        console.print(key, round(float(importance[key].sum()), 3), highlight=False)

    def of_kinds(kinds: Sequence[str]) -> list[Pair]:
        found = [v for key, v in importance.items() if key.split()[0] in kinds]
        return rank(torch.stack(found).mean(0), num_heads)

    orders = {"attribution": of_kinds(KINDS)}
    for kinds in given.kinds:
        name, _, chosen = kinds.partition("=")
        orders[name] = of_kinds(chosen.split(","))
    for other in given.order:
        name, _, path = other.partition("=")
        orders[name] = read_order(Path(path))
    if not given.no_forwards_only:
        mass = [
            measurer.score(
                f"mass {key}", lambda p=probe: far_attention(model, p, given.window, given.sinks)
            )
            for key, probe in named.items()
        ]
        orders["attention mass"] = rank(torch.stack(mass).mean(0), num_heads)
        ids = tokenizer(haystack, add_special_tokens=False).input_ids
        half = len(ids) // 2
        means = [
            measurer.score(f"mean {given.text} {i}", lambda part=part: mean_attention(model, part))
            for i, part in enumerate((ids[:half][:1000], ids[half:][:1000]))
        ]
        orders["mean query and key"] = rank(torch.stack(means).mean(0), num_heads)

    counts = [count for count in COUNTS if count < sum(num_heads)]
    held_out = {}
    for kind, task in HELD_OUT.items():
        # Of variable tracking, the worked example alone is 500 tokens.
        length = max(given.held_out_length, 800 if kind == "tracking" else 0)
        samples = task.samples(tokenizer, length=length, count=given.samples, seed=77)
        held_out[kind] = [task_probe(tokenizer, kind, sample) for sample in samples]
    left: dict[str, dict[str, list[float]]] = {name: {} for name in orders}
    gaps = {}
    for kind, of_kind in held_out.items():
        numbered = {f"{kind} {i} {len(p.token_ids)}": p for i, p in enumerate(of_kind)}

        def mean_loss(kept: Sequence[Pair], numbered: dict[str, Probe] = numbered) -> float:
            return fmean(measurer.loss(key, probe, kept) for key, probe in numbered.items())

        least, most = mean_loss(measurer.order()), mean_loss([])
        gaps[kind] = [round(least, 3), round(most, 3)]
        console.print(kind, *numbered, gaps[kind], highlight=False)
        for name, order in orders.items():
            found = [(mean_loss(order[:n]) - least) / (most - least) for n in counts]
            left[name][kind] = [round(share, 3) for share in found]
            console.print("   ", name, left[name][kind], highlight=False)
    for name, by_kind in left.items():
        by_kind["mean"] = [round(fmean(v), 3) for v in zip(*by_kind.values(), strict=True)]
        console.print(name, by_kind["mean"], *orders[name][:10], highlight=False)
    record = {
        "benchmark": "attribution",
        "model": model_record(model, loaded.name),
        "text": given.text or "sampled",
        "length": given.length,
        "window": given.window,
        "sinks": given.sinks,
        "probes": dict.fromkeys(KINDS, given.per_kind),
        "points": list(POINTS),
        "counts": counts,
        "nats_full_and_windows": gaps,
        "loss_left": left,
        "orders": {name: order[: counts[-1]] for name, order in orders.items()},
        "environment": environment(),
    }
    if given.out is not None:
        write_record(given.out, record)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
