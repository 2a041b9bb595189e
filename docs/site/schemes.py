"""Draw docs/images/schemes.png, the picture of the README: what four caches keep of one text.

Every square comes from the schedules themselves. Run it by `python docs/site/schemes.py`.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from lacache.policies import Full, Ladder, ModelShape, Policy, RetrievalHeads, Streaming, kept_after

NUM_LAYERS, NUM_SEEN, CAPACITY, SINKS = 8, 56, 28, 4
PANELS: tuple[tuple[str, str, Policy, int], ...] = (
    ("Full cache", "keeps everything; grows with each token", Full(), 0),
    (
        "StreamingLLM",
        "attention sinks and a window",
        Streaming(sinks=SINKS, evict_batch=1),
        CAPACITY - SINKS,
    ),
    (
        "Ladder (the paper)",
        "layers keep different old tokens; the older, the sparser",
        Ladder(span=3, overlap=1, sinks=SINKS, recent=8, evict_batch=2),
        8,
    ),
    (
        "Retrieval heads (default)",
        "few KV heads keep a long history, the others a window",
        RetrievalHeads(heads=((2, 5),), window=0.65, sinks=SINKS, evict_batch=1),
        14,
    ),
)
EVICTED, SINK, HISTORY, NEWEST = range(4)
COLOURS = ("#ececec", "#1f4e79", "#c45500", "#f0b27a")
LABELS = ("evicted", "attention sink", "older token", "recent window")


def squares(policy: Policy, recent: int) -> np.ndarray:
    """Return the kind of each square, `[layers, tokens]`; the newest `recent` are the window."""
    shape = ModelShape.of_layers(NUM_LAYERS)
    grid = np.full((NUM_LAYERS, NUM_SEEN), EVICTED)
    for group in policy.bind(shape, CAPACITY):
        kept = kept_after(group.schedule, NUM_SEEN)
        for layer in group.heads:
            for token in kept.by_pattern[group.pattern(layer)]:
                newest = token >= NUM_SEEN - recent
                grid[layer, token] = SINK if token < SINKS else NEWEST if newest else HISTORY
    return grid


def main() -> None:
    """Draw all panels and write the file."""
    plt.rcParams["font.size"] = 11
    figure, axes = plt.subplots(2, 2, figsize=(10.5, 5.2))
    for axis, (title, text, policy, recent) in zip(axes.flat, PANELS, strict=True):
        grid = squares(policy, recent)
        axis.pcolormesh(
            grid, cmap=ListedColormap(COLOURS), vmin=0, vmax=3, edgecolors="white", linewidth=0.8
        )
        axis.invert_yaxis()
        mean = (grid != EVICTED).sum() / NUM_LAYERS
        different = (grid != EVICTED).any(axis=0).sum()
        unit = "head" if isinstance(policy, RetrievalHeads) else "layer"
        axis.set_title(title, loc="left", fontweight="bold", fontsize=13, pad=22)
        axis.text(0, 1.03, text, transform=axis.transAxes, fontsize=11)
        axis.text(
            1,
            1.15,
            f"{mean:.0f} a {unit}, {different} different",
            transform=axis.transAxes,
            ha="right",
            fontsize=10,
            color="#555555",
        )
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_ylabel("layers" if unit == "layer" else "KV heads")
        for side in axis.spines.values():
            side.set_visible(False)
    for axis in axes[1]:
        axis.set_xlabel("tokens, old to new  →")
    figure.legend(
        handles=[Patch(color=c, label=t) for c, t in zip(COLOURS, LABELS, strict=True)],
        loc="lower center",
        ncols=4,
        frameon=False,
    )
    figure.tight_layout(rect=(0, 0.06, 1, 1), h_pad=1.6, w_pad=2)
    figure.savefig(Path(__file__).parents[1] / "images" / "schemes.png", dpi=150)


if __name__ == "__main__":
    main()
