"""Plot of a head profile: the importance of a model's KV heads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lacache.evals.plots.style import FAINT, HEADING, INK, drawing
from lacache.policies.head_profile import HeadProfile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_profile(profile: HeadProfile, path: Path) -> None:
    """Draw importance by layer and KV head, and the loss left by the share of heads kept.

    Args:
        profile: as read from its file.
        path: the PNG to write.

    Raises:
        InputError: the path is not a PNG's, or it cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    most = max(profile.num_heads)
    with drawing(path, max(8.0, 0.3 * profile.num_layers + 3), 5.4 + 0.22 * most) as figure:
        figure.suptitle(
            f"{profile.model}: KV heads that use more than the last {profile.window} tokens",
            **HEADING,
        )
        ratios = (1 + most, 8)
        upper, lower = figure.subplots(2, height_ratios=ratios)
        _draw_importance(figure, upper, profile)
        _draw_loss_left(lower, profile)


def _draw_importance(figure: Figure, axes: Axes, profile: HeadProfile) -> None:
    from matplotlib.colors import PowerNorm

    most = max(profile.num_heads)
    nothing = float("nan")
    rows = [
        [max(row[head], 0.0) if head < len(row) else nothing for row in profile.importance]
        for head in range(most)
    ]
    highest = max(max(row) for row in profile.importance)
    # The most important head stands far out; the root keeps the others visible.
    scale = PowerNorm(0.5, vmin=0, vmax=max(highest, 1e-6))
    image = axes.imshow(rows, cmap="Oranges", norm=scale, aspect="auto")
    axes.grid(False)
    axes.set_xticks(range(0, profile.num_layers, 1 if profile.num_layers <= 40 else 4))
    axes.set_yticks(range(most))
    axes.tick_params(labelsize=8)
    axes.set_xlabel("layer")
    axes.set_ylabel("KV head")
    axes.set_title("Share of what windows in all heads cost", weight="normal", size=11)
    bar = figure.colorbar(image, ax=axes, pad=0.01)
    bar.ax.tick_params(labelsize=8)
    half = len(profile.order) // 10
    for layer, head in profile.order[: max(1, half)]:
        axes.plot(layer, head, marker="o", markersize=4, color=INK, markerfacecolor="none")


def _draw_loss_left(axes: Axes, profile: HeadProfile) -> None:
    total = len(profile.order)
    counts = [100 * count / total for count, _ in profile.loss_left]
    losses = [loss for _, loss in profile.loss_left]
    axes.axhline(0, color=FAINT, linewidth=1)
    axes.plot(counts, losses, marker="o", markersize=4, color="#D55E00")
    axes.set_xlabel(
        "KV heads that keep all tokens, most important first, the others a window (% of heads)"
    )
    axes.set_ylabel("loss left")
    axes.set_title(
        "Loss of the answers: 0 as with a full cache, 1 as with windows in all heads "
        "(circles above: the first tenth of the order)",
        weight="normal",
        size=11,
    )
