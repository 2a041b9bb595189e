"""Perplexity of WikiText-2 over 16K decoded tokens in a cache of 256.

From the released code (`ppl/run.py` and its README): `wikitext-2-raw-v1`, split `test`, read from
its start token by token; `--cache_size 256 --span 16 --overlap 0`, 4 sinks; Meta-Llama-3-8B and
Llama-2-7b-chat-hf. Of 16,385 tokens the first is not predicted. StreamingLLM evicts one token at a
time, as in its paper.

Not published in the code: which Llama-2 the paper's table has, and how its baselines were set.
Different here: the budget of 256 is all that the ladder holds, where the code holds one token more
(see `ReleasedLadder`).
"""

from lacache.evals.recipes.recipe import Recipe
from lacache.evals.suite import Suite


def _suites() -> list[Suite]:
    return [
        Suite(
            tasks=("ppl:text=wikitext-2",),
            methods=("full", "streaming:evict_batch=0", "released-ladder:span=16"),
            budgets=("256",),
            lengths=(16_385,),
            ppl_budgets=("256",),
            ppl_lengths=(16_385,),
            samples=1,
        )
    ]


WIKITEXT_16K = Recipe(
    name="wikitext-16k",
    title="Perplexity of WikiText-2, 16K tokens in a cache of 256",
    models=("meta-llama/Meta-Llama-3-8B", "meta-llama/Llama-2-7b-hf"),
    suites=_suites,
)
