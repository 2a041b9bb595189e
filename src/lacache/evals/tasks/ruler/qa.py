"""RULER's two question tasks: SQuAD and HotpotQA among documents of other questions."""

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, ClassVar, final

from lacache.errors import InputError
from lacache.evals.tasks.ruler.ruler import Draft, Ruler, generator, seeded
from lacache.evals.tasks.task import Question


@dataclass(frozen=True)
class DocumentQuestion(Ruler):
    """A question, the documents that answer it, and others.

    Args:
        data: the file of questions, in its original JSON; None to download it.
    """

    answer_tokens: ClassVar[int] = 32
    file: ClassVar[str]
    """Name of the original file."""
    reader: ClassVar[str]
    """Name of lm-eval's function that reads it."""

    data: str | None = None

    def indices(self, count: int, seed: int) -> Iterable[int]:
        """Return every question in random order."""
        order = list(range(len(read_questions(self)[0])))
        random.Random(seed).shuffle(order)
        return order

    def sizes(self, index: int, room: int) -> tuple[int, int]:
        """Return numbers of documents, from those that answer the question on."""
        questions, documents = read_questions(self)
        # No tokenizer makes fewer tokens of a document and its heading than three.
        return len(questions[index]["context"]), min(len(documents), room // 3)

    def build(self, size: int, *, index: int, length: int, seed: int) -> Draft:
        """Build a prompt of question number `index` with `size` documents."""
        questions, documents = read_questions(self)
        with seeded(seed):
            # A copy: lm-eval shuffles the list itself where all documents are taken.
            text, answers = qa_utils().generate_input_output(
                index, size, qas=questions, docs=list(documents)
            )
        return Draft(f"{text} Answer:", "\n\nAnswer the question based on", tuple(answers))

    def validate(self) -> None:
        """Check that a named file of questions can be read."""
        super().validate()
        if self.data is not None:
            read_questions(self)

    def score(self, prediction: str, question: Question) -> float:
        """Return 1 if any right answer occurs in the prediction, else 0.

        Answers are compared one by one, as in the original: lm-eval's string_match_part returns a
        share of several.
        """
        rules = generator("common_utils")
        predictions = rules.postprocess_pred([prediction])
        return max(
            (rules.string_match_part(predictions, [[answer]]) for answer in question.answers),
            default=0.0,
        )


@final
@dataclass(frozen=True)
class Squad(DocumentQuestion):
    """A question of SQuAD, whose answer is in one paragraph."""

    name: ClassVar[str] = "ruler-qa_squad"
    file: ClassVar[str] = "SQuAD's dev-v2.0.json"
    reader: ClassVar[str] = "read_squad"


@final
@dataclass(frozen=True)
class Hotpot(DocumentQuestion):
    """A question of HotpotQA, whose answer is in two of ten paragraphs."""

    name: ClassVar[str] = "ruler-qa_hotpot"
    file: ClassVar[str] = "HotpotQA's hotpot_dev_distractor_v1.json"
    reader: ClassVar[str] = "read_hotpotqa"


@lru_cache(maxsize=1)
def read_questions(task: DocumentQuestion) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the questions and the documents of a task; do not change the lists.

    Raises:
        InputError: they cannot be read or downloaded.
    """
    read = getattr(qa_utils(), task.reader)
    remedy = f"get {task.file} where there is a network and give data=FILE"
    if task.data is None:
        from huggingface_hub.constants import HF_HUB_OFFLINE

        if HF_HUB_OFFLINE:
            raise InputError(
                f"{task.name} needs {task.file} and HF_HUB_OFFLINE forbids downloads; {remedy}"
            )
        try:
            found: tuple[list[dict[str, Any]], list[str]] = read()
        except OSError as error:
            raise InputError(
                f"{task.name} needs {task.file}, which cannot be downloaded "
                f"({type(error).__name__}); {remedy}"
            ) from error
        return found
    path = Path(task.data).expanduser()
    if not path.is_file():
        raise InputError(f"data={task.data} must be a file; {remedy}")
    try:
        found = read(str(path))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"data={task.data} must be in the format of {task.file} and is not "
            f"({type(error).__name__}: {error}); {remedy}"
        ) from error
    if not found[0]:
        raise InputError(f"data={task.data} holds no question with an answer; {remedy}")
    return found


@cache
def qa_utils() -> Any:
    """Return lm-eval's generator, changed to read files as well as addresses."""
    module = generator("qa_utils")
    download = module.download_json

    def read_json(place: str) -> Any:
        if "://" in place:
            return download(place)
        return json.loads(Path(place).read_text(encoding="utf-8"))

    module.download_json = read_json
    return module
