"""Pictures, always made from records. Need the extra `plots`."""

from lacache.evals.plots.drawing import drawing, require_matplotlib
from lacache.evals.plots.ladder import plot_ladder
from lacache.evals.plots.memory import plot_memory
from lacache.evals.plots.perplexity import plot_perplexity

__all__ = ["drawing", "plot_ladder", "plot_memory", "plot_perplexity", "require_matplotlib"]
