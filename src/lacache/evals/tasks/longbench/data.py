"""LongBench's examples, and its prompts, answer lengths and metrics from lm-eval."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, final
from zipfile import ZipFile

import yaml  # type: ignore[import-untyped]

from lacache.errors import InputError
from lacache.evals.tasks.lm_eval_files import lm_eval_file, lm_eval_module

HUB = "THUDM/LongBench"
_KEYS = ("input", "context", "answers")
DATASETS = (
    *("narrativeqa", "qasper", "multifieldqa_en", "multifieldqa_zh"),
    *("hotpotqa", "2wikimqa", "musique", "dureader"),
    *("gov_report", "qmsum", "multi_news", "vcsum"),
    *("trec", "triviaqa", "samsum", "lsht"),
    *("passage_count", "passage_retrieval_en", "passage_retrieval_zh"),
    *("lcc", "repobench-p"),
)

# Endings of the original's prompts whose white space lm-eval changed.
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
    """Prompt, answer length and metric of one dataset."""

    before: str
    """Text before the context."""
    after: str
    """Text after the context, with `{{question}}` in place of the question, if there is one."""
    answer_tokens: int
    metric: str
    """Name of the function of lm-eval's `metrics` that scores."""
    first_line: bool
    """Whether only the first line of an answer is scored."""


@cache
def load_prompt(dataset: str) -> Prompt:
    """Read the prompt of a dataset from lm-eval's configuration.

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
    """Return lm-eval's module of LongBench's metrics.

    Raises:
        MissingExtraError: the extra `evals` is not installed.
    """
    return lm_eval_module("longbench/metrics.py", "fuzzywuzzy", "jieba", "rouge")


@cache
def load_examples(dataset: str, folder: str | None) -> tuple[dict[str, Any], ...]:
    """Load the examples of a dataset, with at least `input`, `context` and `answers`.

    Args:
        dataset: such as "qasper".
        folder: holds `<dataset>.jsonl` in LongBench's format; None for the hub's data.zip.

    Raises:
        InputError: the data cannot be loaded or are not in that format.
    """
    if folder is None:
        place, raw = f"{HUB} on the hub", _from_hub(dataset)
    else:
        path = Path(folder).expanduser() / f"{dataset}.jsonl"
        try:
            place, raw = str(path), path.read_bytes()
        except OSError as error:
            raise InputError(
                f"{path} cannot be read ({error.strerror}); give a folder that holds the files "
                "of LongBench's data.zip"
            ) from error
    examples = tuple(
        _example(line, place, number)
        for number, line in enumerate(raw.splitlines(), 1)
        if line.strip()
    )
    if not examples:
        raise InputError(f"{place} has no examples of {dataset}; give another folder")
    return examples


def _example(line: bytes, place: str, number: int) -> dict[str, Any]:
    try:
        example: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise InputError(
            f"line {number} of {place} is not JSON ({error}); get the file again"
        ) from error
    has_keys = isinstance(example, dict) and all(key in example for key in _KEYS)
    if not has_keys or not example["answers"]:
        raise InputError(
            f"line {number} of {place} must have {', '.join(_KEYS)}, as LongBench's examples do; "
            "get the file again"
        )
    return example


def _from_hub(dataset: str) -> bytes:
    from huggingface_hub import hf_hub_download

    try:
        archive = hf_hub_download(HUB, "data.zip", repo_type="dataset")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{HUB} cannot be downloaded from the hub ({type(error).__name__}); unpack its "
            "data.zip where there is a network and give folder=FOLDER"
        ) from error
    with ZipFile(archive) as files:
        return files.read(f"data/{dataset}.jsonl")
