"""LongBench with Llama-2-7b-chat at half and a quarter of its window.

From the released code (`LongBench/pred.py`, its configuration and its README): all 21 data sets
with all their rows; prompts cut in the middle to 3,500 tokens; `--budget 0.5 --span 16 --overlap 0`
and `--budget 0.25 --span 9 --overlap 3` of these 3,500 tokens, whatever the prompt's length, so
1,750 and 875 tokens per layer; 128 sinks; the prompt is read densely, then compacted, and the first
answer token comes from the dense logits; greedy. The code's test for a chat model does not find
"llama2" in this model's name, so prompts have no chat format there, and have none here.

Not published in the code: how the paper's StreamingLLM was set; here it has the same sinks and
evicts one token at a time. Different here: samsum's answers do not stop at a line's end (only their
first line is scored, as LongBench does).
"""

from lacache.evals.recipes.recipe import Recipe
from lacache.evals.suite import Suite

_WINDOW = 3500
_ROWS = {"multifieldqa_en": 150, "lcc": 500, "repobench-p": 500}
_MOST_HAVE = 200
"""Rows of the data sets that are not named above (LongBench, arXiv 2308.14508, table 1)."""
_LADDERS = {"1750": "span=16,overlap=0", "875": "span=9,overlap=3"}


def _suites() -> list[Suite]:
    from lacache.evals.tasks.longbench.prompts import DATASETS, load_prompt

    return [
        Suite(
            tasks=(f"longbench-{dataset}",),
            methods=(
                "full",
                "streaming:sinks=128,evict_batch=0",
                f"released-ladder:{ladder},sinks=128",
            ),
            budgets=(budget,),
            lengths=(_WINDOW + load_prompt(dataset).answer_tokens,),
            ppl_budgets=(),
            ppl_lengths=(),
            protocols=("dense",),
            first_token="dense",
            samples=_ROWS.get(dataset, _MOST_HAVE),
        )
        for dataset in DATASETS
        for budget, ladder in _LADDERS.items()
    ]


LONGBENCH_LLAMA2 = Recipe(
    name="longbench-llama2",
    title="LongBench, 50 % and 25 % of a window of 3,500 tokens",
    models=("meta-llama/Llama-2-7b-chat-hf",),
    suites=_suites,
)
