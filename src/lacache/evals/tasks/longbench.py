"""LongBench v1's 21 tasks (arXiv 2308.14508), with their own data, prompts and metrics.

Prompts, answer lengths and metrics are those that lm-eval keeps (`lm_eval/tasks/longbench`), with
the white space of the original's `config/dataset2prompt.json` where lm-eval lost it. As in the
original's `pred.py` and `eval.py`, a prompt that is too long loses its middle, and of an answer to
the four few-shot tasks the first line counts. Unlike there, a length counts the answer too, and no
chat template is put around the prompt. lm-eval's code similarity passes over blank lines, the
original's does not.
"""

import json
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, final
from zipfile import ZipFile

import yaml  # type: ignore[import-untyped]

from lacache.common.validation import validate_int
from lacache.errors import InputError
from lacache.evals.tasks.lm_eval_files import lm_eval_file, lm_eval_module
from lacache.evals.tasks.task import Question, Sample, Task, count_tokens

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


@dataclass(frozen=True)
class LongBench(Task):
    """One dataset of LongBench; `LONGBENCH` has a class for each.

    Args:
        folder: holds `<dataset>.jsonl` in LongBench's format; None for the hub's data.
        max_new_tokens: most tokens of an answer; None for LongBench's number.
    """

    dataset: ClassVar[str]
    stays_right: ClassVar[bool] = False

    folder: str | None = None
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None:
            validate_int("max_new_tokens", self.max_new_tokens, 1)

    def samples(self, tokenizer: Any, *, length: int, count: int, seed: int) -> list[Sample]:
        """Make samples of examples in random order; skip those whose question leaves no room.

        Raises:
            InputError: the data are missing, or too few examples fit the length.
            MissingExtraError: the extra `evals` is not installed.
        """
        prompt = load_prompt(self.dataset)
        examples = load_examples(self.dataset, self.folder)
        new = self.max_new_tokens or prompt.answer_tokens
        order = list(range(len(examples)))
        random.Random(seed).shuffle(order)
        made: list[Sample] = []
        for number in order:
            if len(made) == count:
                break
            example = examples[number]
            text = prompt.after.replace("{{question}}", example["input"])
            whole = prompt.before + example["context"]
            context = cut_middle(tokenizer, whole, text, room=length - new)
            if context is None:
                continue
            info = {"example": number, "cut_tokens": _tokens_lost(tokenizer, whole, context)}
            made.append(Sample(context, (Question(text, tuple(example["answers"]), new),), info))
        if len(made) < count:
            raise InputError(
                f"length={length} must hold {count} samples of {self.name}, answers of {new} "
                f"tokens included; of {len(examples)} examples it holds {len(made)}; "
                f"try {'a smaller count' if made else 'a greater length'}"
            )
        return made

    def validate(self) -> None:
        """Check that lm-eval's prompts and metrics are there, and a named folder."""
        load_prompt(self.dataset)
        metrics()
        if self.folder is not None:
            load_examples(self.dataset, self.folder)

    def score(self, prediction: str, question: Question) -> float:
        """Return the dataset's metric, for the right answer nearest to the prediction."""
        prompt = load_prompt(self.dataset)
        if prompt.first_line:
            prediction = prediction.lstrip("\n").split("\n")[0]
        document = {"answers": list(question.answers), "all_classes": ()}
        if prompt.metric == "get_classification_with_score":
            examples = load_examples(self.dataset, self.folder)
            document["all_classes"] = examples[0]["all_classes"]
        measure = getattr(metrics(), prompt.metric)
        return float(measure(document, [prediction])["score"])


def cut_middle(tokenizer: Any, context: str, question: str, *, room: int) -> str | None:
    """Shorten a context so that it makes at most `room` tokens with the question.

    As in LongBench's `pred.py`, both ends of the whole prompt stay, half of the tokens each; the
    question is part of the second half and is never cut.

    Returns:
        The context, or None if the question leaves no room for one.
    """
    if count_tokens(tokenizer, context, question) <= room:
        return context
    ids = tokenizer(context, add_special_tokens=False, verbose=False).input_ids
    start = count_tokens(tokenizer)
    asked = count_tokens(tokenizer, question) - start
    last = max(0, room // 2 - asked)
    first = min(room // 2, room - asked) - start
    while first > 0:
        ends = (ids[:first], ids[len(ids) - last :])
        text = "".join(tokenizer.decode(end, skip_special_tokens=True) for end in ends)
        # The text at the cut may make more tokens than its two sides did.
        over = count_tokens(tokenizer, text, question) - room
        if over <= 0:
            return text
        first -= over
    return None


def _tokens_lost(tokenizer: Any, whole: str, context: str) -> int:
    return (
        0 if whole == context else count_tokens(tokenizer, whole) - count_tokens(tokenizer, context)
    )


def _task(dataset: str) -> type[LongBench]:
    names = {
        "name": f"longbench-{dataset}",
        "dataset": dataset,
        "__doc__": f"LongBench: {dataset}.",
    }
    return type(f"LongBench_{dataset}", (LongBench,), names)


LONGBENCH = {f"longbench-{dataset}": _task(dataset) for dataset in DATASETS}
"""The tasks by name."""
