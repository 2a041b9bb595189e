"""Drift: what 1,000 compactions do to the rotated keys of a bfloat16 cache.

Metric: relative error (norm of the difference over the norm) of all keys that attention gets from
the cache, against the model's unrotated keys rotated to their slots in float64, by number of
compactions. Beside it the error of rounding the exact keys once, and of a cache that re-rotates its
stored keys at each compaction.
"""

import argparse
import json
from pathlib import Path
from typing import Any, final

import torch
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lacache import LaCache, Ladder
from lacache.common.records import Record, environment, write_record
from lacache.evals.plots import drawing
from lacache.evals.provenance import model_record, policy_record
from lacache.policies import kept_after

RESULTS = Path(__file__).parent / "results"
# Token by token once full: each compaction moves all tokens behind the cursor by one slot.
POLICY = Ladder(span=2, overlap=1, evict_batch=1, positions="slots")
CAPACITY = 1280
COMPACTIONS = 1_000
POINTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)
HEAD = 64
THETA = 100_000.0


@final
class Recorder:
    """Sees the keys of the last layer: unrotated, per token, and as attention gets them."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.unrotated: list[Tensor] = []
        self.given = torch.empty(0)
        last = model.model.layers[-1].self_attn
        last.k_proj.register_forward_hook(self._projected)
        self._last = last
        AttentionInterface.register("recording", self._attend)
        model.set_attn_implementation("recording")

    def _projected(self, module: Any, args: Any, output: Tensor) -> None:
        self.unrotated.extend(output[0].view(output.shape[1], -1, HEAD).unbind(0))

    def _attend(self, module: Any, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        if module is self._last:
            self.given = key[0]
        return sdpa_attention_forward(module, query, key, *args, **kwargs)


def rotate(keys: Tensor, positions: Tensor, dtype: torch.dtype) -> Tensor:
    """Rotate keys [N, H, D] by `positions` [N], all arithmetic in `dtype`."""
    frequencies = THETA ** (-torch.arange(0, HEAD, 2, dtype=torch.float64) / HEAD)
    angles = (positions.double()[:, None] * frequencies).repeat(1, 2)[:, None]
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    keys = keys.to(dtype)
    first, second = keys.chunk(2, dim=-1)
    return keys * cos + torch.cat([-second, first], dim=-1) * sin


def error(keys: Tensor, exact: Tensor) -> float:
    """Relative error in per cent."""
    return float(100 * (keys.double() - exact).norm() / exact.norm())


def measure(compactions: int) -> Record:
    """Run the cache and the two others, and give the record."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=2 * HEAD,
        intermediate_size=4 * HEAD,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=HEAD,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
    )
    # Not `.to(torch.bfloat16)`, which would round the rotary frequencies too.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    recorder = Recorder(model)
    cache = LaCache(model, CAPACITY, POLICY)
    recorder.unrotated.clear()
    schedule = POLICY.schedule(config.num_hidden_layers, CAPACITY)
    tokens = torch.randint(0, config.vocab_size, (1, schedule.capacity + 2 * compactions))
    cache.prefill(model, tokens[:, : schedule.capacity])

    slots = torch.arange(schedule.capacity)
    repeated = rotate(torch.stack(recorder.unrotated), slots, torch.bfloat16)
    held = list(range(schedule.capacity))
    points = []
    done = 0
    while done < compactions:
        seen = cache.report().num_seen
        is_due = cache.report().num_cached == schedule.capacity
        cache.prefill(model, tokens[:, seen : seen + 1])
        kept = cache.kept_tokens(config.num_hidden_layers - 1)
        # Re-rotation: rotate every survivor by the slots that it moved.
        old_slot = {token: slot for slot, token in enumerate(held)}
        old_slots = torch.tensor([old_slot[token] for token in kept[:-1]])
        moved = torch.arange(len(kept) - 1) - old_slots
        survivors = repeated[old_slots]
        has_moved = moved != 0
        survivors[has_moved] = rotate(survivors[has_moved], moved[has_moved], torch.bfloat16)
        new_slot = torch.tensor([len(kept) - 1])
        newest = rotate(recorder.unrotated[-1][None], new_slot, torch.bfloat16)
        repeated = torch.cat([survivors, newest])
        held = kept
        done += is_due
        if is_due and done in POINTS:
            unrotated = torch.stack([recorder.unrotated[token] for token in kept])
            exact = rotate(unrotated, torch.arange(len(kept)), torch.float64)
            points.append(
                {
                    "compactions": done,
                    "cache_percent": error(recorder.given.transpose(0, 1), exact),
                    "rounded_once_percent": error(exact.to(torch.bfloat16), exact),
                    "rotated_in_bfloat16_percent": error(
                        rotate(unrotated, torch.arange(len(kept)), torch.bfloat16), exact
                    ),
                    "repeated_percent": error(repeated, exact),
                }
            )
    assert held == kept_after(schedule, cache.report().num_seen).by_pattern[schedule.patterns[-1]]
    return {
        "benchmark": "drift",
        "model": model_record(model, "tiny random Llama"),
        "policy": policy_record(POLICY),
        "capacity": CAPACITY,
        "points": points,
        "environment": environment(),
    }


def plot(record: Record, path: Path) -> None:
    """Draw the record."""
    lines = {
        "repeated_percent": ("stored keys, rotated again at each compaction", "#0072B2", "s"),
        "cache_percent": ("this cache", "#D55E00", "o"),
        "rotated_in_bfloat16_percent": ("exact keys, rotated once in bfloat16", "#E69F00", "v"),
        "rounded_once_percent": ("exact keys, rounded once", "#444444", "^"),
    }
    with drawing(path, 9, 5) as figure:
        axes = figure.subplots()
        numbers = [point["compactions"] for point in record["points"]]
        for key, (label, colour, marker) in lines.items():
            errors = [point[key] for point in record["points"]]
            axes.plot(
                numbers,
                errors,
                color=colour,
                marker=marker,
                linewidth=2,
                label=f"{label}: {errors[-1]:.2g} % at the end",
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(0.1, 100)
        axes.set_xlabel("compactions")
        axes.set_ylabel("relative error of the keys in %")
        axes.set_title("Keys in bfloat16 after many compactions")
        axes.legend(loc="best")


def main() -> None:
    """Measure, write the record, draw it, print it."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--compactions", type=int, default=COMPACTIONS)
    given = options.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        record = measure(given.compactions)
    write_record(RESULTS / "drift.json", record)
    plot(record, RESULTS / "drift.png")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
