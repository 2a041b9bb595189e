"""Plots, always drawn from records. They need the extra `plots`."""

from lacache.evals.plots.demo import plot_memory, plot_perplexity
from lacache.evals.plots.ladder import plot_ladder
from lacache.evals.plots.style import drawing, require_matplotlib

__all__ = ["drawing", "plot_ladder", "plot_memory", "plot_perplexity", "require_matplotlib"]
