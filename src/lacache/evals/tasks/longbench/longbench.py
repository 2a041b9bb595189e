"""LongBench's tasks: a question about a long document, which loses its middle if too long."""

import random
from dataclasses import dataclass
from typing import Any, ClassVar

from lacache.common.validation import validate_int
from lacache.errors import InputError
from lacache.evals.tasks.fit import count_tokens
from lacache.evals.tasks.longbench.data import DATASETS, load_examples, load_prompt, metrics
from lacache.evals.tasks.task import Question, Sample, Task


@dataclass(frozen=True)
class LongBench(Task):
    """One dataset of LongBench; `LONGBENCH` has a class for each.

    Args:
        folder: holds `<dataset>.jsonl` in LongBench's format; None for the hub's data.
        max_new_tokens: most tokens of an answer; None for LongBench's number.
    """

    dataset: ClassVar[str]

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
