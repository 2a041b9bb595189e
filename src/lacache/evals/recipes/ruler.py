"""RULER with LongChat at half of the cache.

From the paper: RULER's 13 tasks on a LongChat-7b at 50 % of the cache, mean 50.88 for the ladder
and 44.82 for StreamingLLM.

Not published in the released code, which has no RULER: the length, the number of samples, the
ladder's settings, the sinks, and how a prompt is read. Taken here: the model with the longer window
of its two, 16,384 tokens, RULER's own 500 samples for each task (arXiv 2404.06654), the settings
that the code names for half of the cache of a model with 32 layers (span 16, overlap 0, 128 sinks),
and the dense protocol of its LongBench and needle tests. So this recipe is a like test and not a
repetition: compare the ratio of the two methods rather than the figures.
"""

from lacache.evals.recipes.recipe import Recipe
from lacache.evals.suite import Suite


def _suites() -> list[Suite]:
    from lacache.evals.tasks.ruler.table import RULER

    return [
        Suite(
            tasks=tuple(RULER),
            methods=(
                "full",
                "streaming:sinks=128,evict_batch=0",
                "released-ladder:span=16,sinks=128",
            ),
            budgets=("0.5",),
            lengths=(16_384,),
            ppl_budgets=(),
            ppl_lengths=(),
            protocols=("dense",),
            first_token="dense",
            samples=500,
        )
    ]


RULER_LONGCHAT = Recipe(
    name="ruler-longchat",
    title="RULER's 13 tasks at 16K tokens, half of the cache",
    models=("lmsys/longchat-7b-v1.5-32k", "lmsys/longchat-7b-16k"),
    suites=_suites,
)
