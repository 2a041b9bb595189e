"""A needle in up to 128K tokens with Llama-3.2-3B-Instruct at half of the cache.

From the released code (`niah/pred.py` and its README): lengths from 16,384 to 131,072 in steps of
16,384, 11 depths, 50 seeds each; `--span 14 --overlap 0 --budget 0.5`, 64 sinks; the prompt is read
densely, then compacted, and the first answer token comes from the dense logits; greedy, plain
prompts without a chat template, a pass key from 1 to 99999 in the same five sentences, right if the
answer contains it.

Not published in the code: how the paper's StreamingLLM was set; here it has the same sinks and
evicts one token at a time. Different here: the prompt's first line is that of landmark attention
(arXiv 2305.16300), lengths are in tokens where the code counts 3.75 characters to a token, and an
answer may have 8 tokens where the code stops after as many as the key has.
"""

from lacache.evals.recipes.recipe import Recipe
from lacache.evals.suite import Suite

_SEEDS = 50
_DEPTHS = 11
_STEP = 16_384


def _suites() -> list[Suite]:
    return [
        Suite(
            tasks=("passkey-grid",),
            methods=(
                "full",
                "streaming:sinks=64,evict_batch=0",
                "released-ladder:span=14,sinks=64",
            ),
            budgets=("0.5",),
            lengths=tuple(range(_STEP, 8 * _STEP + 1, _STEP)),
            ppl_budgets=(),
            ppl_lengths=(),
            protocols=("dense",),
            first_token="dense",
            samples=_DEPTHS,
            seed=seed,
        )
        for seed in range(_SEEDS)
    ]


NEEDLE_LLAMA32 = Recipe(
    name="needle-llama3.2",
    title="A needle in up to 128K tokens, half of the cache",
    models=("meta-llama/Llama-3.2-3B-Instruct",),
    suites=_suites,
)
