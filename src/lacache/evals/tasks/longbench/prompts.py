"""What lm-eval knows about a data set of LongBench's: prompt, answer length, metric."""

from dataclasses import dataclass
from functools import cache
from typing import Any, final

import yaml  # type: ignore[import-untyped]

from lacache.evals.tasks.lm_eval_files import lm_eval_file, lm_eval_module

DATASETS = (
    *("narrativeqa", "qasper", "multifieldqa_en", "multifieldqa_zh"),
    *("hotpotqa", "2wikimqa", "musique", "dureader"),
    *("gov_report", "qmsum", "multi_news", "vcsum"),
    *("trec", "triviaqa", "samsum", "lsht"),
    *("passage_count", "passage_retrieval_en", "passage_retrieval_zh"),
    *("lcc", "repobench-p"),
)

# Where lm-eval's prompt ends in other white space than the original's.
_ENDINGS = {
    "triviaqa": "\n\n{{question}}",
    "samsum": "\n\n{{question}}",
    "passage_count": " ",
    "passage_retrieval_en": " ",
    "lcc": "\n",
    "repobench-p": "\n",
}


@final
@dataclass(frozen=True)
class Prompt:
    """How one data set is asked about and scored."""

    before: str
    """What precedes the context."""
    after: str
    """What follows the context, with `{{question}}` where the question goes, if there is one."""
    answer_tokens: int
    metric: str
    """The function of lm-eval's `metrics` that scores."""
    first_line: bool
    """Whether only the first line of an answer counts."""


@cache
def load_prompt(dataset: str) -> Prompt:
    """What lm-eval's configuration of a data set says.

    Raises:
        MissingExtraError: the extra `evals` is not installed.
    """
    text = lm_eval_file(f"longbench/{dataset}.yaml").read_text(encoding="utf-8")
    # A tag of lm-eval's own; the name of the function is enough here.
    config = yaml.safe_load(text.replace("!function ", ""))
    before, after = config["doc_to_text"].split("{{context}}")
    ending = _ENDINGS.get(dataset, "")
    generation = config["generation_kwargs"]
    return Prompt(
        before=before,
        after=ending if "{{question}}" in ending else after + ending,
        answer_tokens=generation["max_gen_toks"],
        metric=config["process_results"].removeprefix("metrics."),
        first_line="\n" in generation["until"],
    )


@cache
def metrics() -> Any:
    """lm-eval's module of LongBench's metrics.

    Raises:
        MissingExtraError: the extra `evals` is not installed.
    """
    return lm_eval_module("longbench/metrics.py", "fuzzywuzzy", "jieba", "rouge")
