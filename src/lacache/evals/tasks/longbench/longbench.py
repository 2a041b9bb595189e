"""LongBench's tasks: a question about a long document."""

import random
from dataclasses import dataclass
from typing import Any, ClassVar

from lacache.common.validation import validate_int
from lacache.errors import InputError
from lacache.evals.tasks.lengths import count_tokens
from lacache.evals.tasks.longbench.middle import cut_middle
from lacache.evals.tasks.longbench.prompts import DATASETS, load_prompt, metrics
from lacache.evals.tasks.longbench.rows import load_rows
from lacache.evals.tasks.task import Question, Sample, Task


@dataclass(frozen=True)
class LongBench(Task):
    """One data set of LongBench's; `LONGBENCH` has a class for each.

    Args:
        folder: holds `<dataset>.jsonl` in LongBench's format; without it, the hub's data are
            taken.
        max_new_tokens: most tokens of an answer; without it, LongBench's own number.
    """

    dataset: ClassVar[str]

    folder: str | None = None
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None:
            validate_int("max_new_tokens", self.max_new_tokens, 1)

    def samples(self, tokenizer: Any, *, length: int, count: int, seed: int) -> list[Sample]:
        """Rows in random order, passing over those whose question leaves no room for a context.

        Raises:
            InputError: the data are missing, or too few rows fit the length.
            MissingExtraError: the extra `evals` is not installed.
        """
        prompt = load_prompt(self.dataset)
        rows = load_rows(self.dataset, self.folder)
        new = self.max_new_tokens or prompt.answer_tokens
        order = list(range(len(rows)))
        random.Random(seed).shuffle(order)
        made: list[Sample] = []
        for number in order:
            if len(made) == count:
                break
            row = rows[number]
            text = prompt.after.replace("{{question}}", row["input"])
            whole = prompt.before + row["context"]
            context = cut_middle(tokenizer, whole, text, room=length - new)
            if context is None:
                continue
            info = {"row": number, "cut_tokens": _tokens_lost(tokenizer, whole, context)}
            made.append(Sample(context, (Question(text, tuple(row["answers"]), new),), info))
        if len(made) < count:
            raise InputError(
                f"length={length} must hold {count} samples of {self.name}, answers of {new} "
                f"tokens included; of {len(rows)} rows it holds {len(made)}; "
                f"try {'a smaller count' if made else 'a greater length'}"
            )
        return made

    def check(self) -> None:
        """Raise unless lm-eval's prompts and metrics are there, and a folder that was named."""
        load_prompt(self.dataset)
        metrics()
        if self.folder is not None:
            load_rows(self.dataset, self.folder)

    def score(self, prediction: str, question: Question) -> float:
        """The data set's own metric, for the right answer that the prediction is nearest to."""
        prompt = load_prompt(self.dataset)
        if prompt.first_line:
            prediction = prediction.lstrip("\n").split("\n")[0]
        row = {"answers": list(question.answers), "all_classes": ()}
        if prompt.metric == "get_classification_with_score":
            row["all_classes"] = load_rows(self.dataset, self.folder)[0]["all_classes"]
        measure = getattr(metrics(), prompt.metric)
        return float(measure(row, [prediction])["score"])


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
"""By name, the tasks."""
