"""The paper's tables (arXiv 2507.14204) as lists of runs, for users who have the weights.

A recipe's docstring states what is taken from the paper or its released code
(github.com/GATECH-EIC/LaCache), and what neither of them states. How the paper's StreamingLLM was
set is published nowhere; here it has the ladder's sinks and evicts one token at a time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, final

from lacache.evals.runs import RunSpec
from lacache.evals.suite import Suite


@final
@dataclass(frozen=True)
class Recipe:
    """A table of the paper.

    Args:
        name: as on the command line.
        title: one line, for a list of recipes.
        models: names on the hub; the first is run unless the user names another.
        suites: makes its suites. Called when it is run, as some need an extra.
    """

    name: str
    title: str
    models: tuple[str, ...]
    suites: Callable[[], Iterator[Suite]]

    def runs(self, **changes: Any) -> list[RunSpec]:
        """List the runs, each once.

        Args:
            changes: fields of `Suite` that replace the recipe's, such as fewer samples for a try;
                the figures are then no longer those of the paper's table.

        Raises:
            ConfigError: a value out of range.
            MissingExtraError: a package that the recipe needs is not installed.
        """
        suites = [replace(suite, **changes) for suite in self.suites()]
        return list(dict.fromkeys(run for suite in suites for run in suite.runs()))


def _policies(ladder: str, sinks: int) -> tuple[str, ...]:
    return ("full", f"streaming:sinks={sinks}:evict_batch=1", f"paper:{ladder}:sinks={sinks}")


def _ruler() -> Iterator[Suite]:
    """RULER with LongChat at half of the cache.

    From the paper: RULER's 13 tasks on a LongChat-7b at 50 % of the cache, mean 50.88 for the
    ladder and 44.82 for StreamingLLM.

    Not published, as the released code has no RULER: the length, the number of samples, the
    ladder's settings, the sinks, and the prefill. Taken here: the model with the longer window of
    its two, 16,384 tokens, RULER's own 500 samples for each task (arXiv 2404.06654), the settings
    that the code names for half of the cache of a model with 32 layers (span 16, overlap 0, 128
    sinks), and the dense prefill of its LongBench and needle tests. So this is a similar test and
    not a repetition: compare the ratio of the two policies rather than the figures.
    """
    from lacache.evals.tasks.registry import RULER

    yield Suite(
        tasks=tuple(RULER),
        policies=_policies("span=16", 128),
        budgets=("0.5",),
        lengths=(16_384,),
        prefills=("dense",),
        first_token="dense",
        samples=500,
    )


def _wikitext() -> Iterator[Suite]:
    """Perplexity of WikiText-2 over 16K decoded tokens in a cache of 256.

    From the released code (`ppl/run.py` and its README): `wikitext-2-raw-v1`, split `test`, from
    its start token by token; `--cache_size 256 --span 16 --overlap 0`, 4 sinks; Meta-Llama-3-8B and
    Llama-2-7b-chat-hf. Of 16,385 tokens the first is not predicted.

    Not published: which Llama-2 the paper's table has. Different here: the budget of 256 is all
    that the ladder holds, where the code holds one token more.
    """
    yield Suite(
        tasks=("ppl:text=wikitext-2",),
        policies=_policies("span=16", 4),
        budgets=("256",),
        lengths=(16_385,),
        ppl_budgets=("256",),
        ppl_lengths=(16_385,),
        samples=1,
    )


def _longbench() -> Iterator[Suite]:
    """LongBench with Llama-2-7b-chat at half and a quarter of its window.

    From the released code (`LongBench/pred.py`, its configuration and its README): all 21 data sets
    with all their rows; prompts cut in the middle to 3,500 tokens; `--budget 0.5 --span 16
    --overlap 0` and `--budget 0.25 --span 9 --overlap 3` of these 3,500 tokens, whatever the
    prompt's length, so 1,750 and 875 tokens per layer; 128 sinks; a dense prefill, the first answer
    token from the dense logits; greedy. The code's test for a chat model does not find "llama2" in
    this model's name, so prompts have no chat format there, and have none here.

    Different here: samsum's answers do not stop at a line's end (only their first line is scored,
    as LongBench does).
    """
    from lacache.evals.tasks.longbench import DATASETS, load_prompt

    window = 3500
    # The other data sets have 200 rows (LongBench, arXiv 2308.14508, table 1).
    rows = {"multifieldqa_en": 150, "lcc": 500, "repobench-p": 500}
    for dataset in DATASETS:
        for budget, ladder in (("1750", "span=16"), ("875", "span=9:overlap=3")):
            yield Suite(
                tasks=(f"longbench-{dataset}",),
                policies=_policies(ladder, 128),
                budgets=(budget,),
                lengths=(window + load_prompt(dataset).answer_tokens,),
                prefills=("dense",),
                first_token="dense",
                samples=rows.get(dataset, 200),
            )


def _needle() -> Iterator[Suite]:
    """A needle in up to 128K tokens with Llama-3.2-3B-Instruct at half of the cache.

    From the released code (`niah/pred.py` and its README): lengths from 16,384 to 131,072 in steps
    of 16,384, 11 depths, 50 seeds each; `--span 14 --overlap 0 --budget 0.5`, 64 sinks; a dense
    prefill, the first answer token from the dense logits; greedy, plain prompts without a chat
    template, a pass key from 1 to 99999 in the same five sentences, right if the answer contains
    it.

    Different here: the prompt's first line is that of landmark attention (arXiv 2305.16300),
    lengths are in tokens where the code counts 3.75 characters to a token, and an answer may have 8
    tokens where the code stops after as many as the key has.
    """
    for seed in range(50):
        yield Suite(
            tasks=("passkey-grid",),
            policies=_policies("span=14", 64),
            budgets=("0.5",),
            lengths=tuple(range(16_384, 131_073, 16_384)),
            prefills=("dense",),
            first_token="dense",
            samples=11,
            seed=seed,
        )


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "ruler-longchat",
            "RULER's 13 tasks at 16K tokens, half of the cache",
            ("lmsys/longchat-7b-v1.5-32k", "lmsys/longchat-7b-16k"),
            _ruler,
        ),
        Recipe(
            "wikitext-16k",
            "Perplexity of WikiText-2, 16K tokens in a cache of 256",
            ("meta-llama/Meta-Llama-3-8B", "meta-llama/Llama-2-7b-hf"),
            _wikitext,
        ),
        Recipe(
            "longbench-llama2",
            "LongBench, 50 % and 25 % of a window of 3,500 tokens",
            ("meta-llama/Llama-2-7b-chat-hf",),
            _longbench,
        ),
        Recipe(
            "needle-llama3.2",
            "A needle in up to 128K tokens, half of the cache",
            ("meta-llama/Llama-3.2-3B-Instruct",),
            _needle,
        ),
    )
}
