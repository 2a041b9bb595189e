"""The interface of a task: samples of contexts and questions that fit a length, and a score."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

from lacache.errors import InputError
from lacache.models.start_tokens import start_tokens

_MOST_SENTENCES = 1 << 20


@final
@dataclass(frozen=True)
class Question:
    """A question about a context that was prefilled before."""

    text: str
    """What follows the context (or the last answer), up to where the answer starts."""
    answers: tuple[str, ...]
    """The right answers: all of them or any of them, as the task scores."""
    max_new_tokens: int
    """Most tokens of an answer."""


@final
@dataclass(frozen=True)
class Sample:
    """A context and the questions about it, asked one after the other."""

    context: str
    questions: tuple[Question, ...]
    info: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the sample's record, such as the depth of a needle; plain JSON."""


@dataclass(frozen=True)
class Task(ABC):
    """A source of samples. Subclasses are frozen dataclasses; their fields are the settings."""

    name: ClassVar[str]
    stays_right: ClassVar[bool] = True
    """Whether no further token can lower a score of 1, so that the last answer may end there."""

    @abstractmethod
    def samples(self, tokenizer: Any, *, length: int, count: int, seed: int) -> list[Sample]:
        """Make samples, the same for the same arguments.

        Args:
            tokenizer: the model's, to measure lengths.
            length: tokens of a whole prompt with its answers, which has nearly and at most as many.
            count: number of samples.
            seed: of all random choices.

        Raises:
            InputError: the length is too short, or a document that the task needs is missing.
        """

    def validate(self) -> None:  # noqa: B027  # most tasks need nothing
        """Check that the files and packages of the task are there, without the network.

        Raises:
            InputError: a file or document is missing or damaged.
            MissingExtraError: a package is not installed.
        """

    def score(self, prediction: str, question: Question) -> float:
        """Score a prediction from 0 to 1: by default 1 if it contains the first answer."""
        return float(question.answers[0] in prediction)


def count_tokens(tokenizer: Any, *parts: str) -> int:
    """Count the tokens of strings encoded one by one, and of a start token if there is one.

    A context and its questions are encoded in the same way.
    """
    return len(start_tokens(tokenizer)) + sum(
        len(tokenizer(part, add_special_tokens=False, verbose=False).input_ids) for part in parts
    )


def largest_fitting(
    tokens: Callable[[int], int], room: int, *, least: int, most: int, start: int
) -> int | None:
    """Return the largest size in `least..most` of at most `room` tokens, or None if there is none.

    The search doubles its steps away from `start`, then halves them. Where tokens do not quite
    grow with the size the result still fits, but a larger one may too.
    """
    below, above = least - 1, most + 1
    size, step = min(max(start, least), most), 1
    while above - below > 1:
        if tokens(size) <= room:
            below = size
        else:
            above = size
        if above > most:
            size = min(below + step, most)
        elif below < least:
            size = max(above - step, least)
        else:
            size = (below + above) // 2
        step *= 2
    return below if below >= least else None


def fit_context(
    tokenizer: Any,
    build: Callable[[int], str],
    questions: Sequence[Question],
    *,
    length: int,
    task: str,
) -> str:
    """Build the largest context whose prompt and answers fit into a length.

    Args:
        tokenizer: the model's.
        build: makes a context of a size, such as the number of sentences around the needles.
        questions: all that are asked about the context.
        length: tokens of the context, the questions and the answers.
        task: name of the task, for the error.

    Raises:
        InputError: the length is too short for the needles alone.
    """
    new_tokens = sum(question.max_new_tokens for question in questions)
    room = length - new_tokens

    def prompt_tokens(size: int) -> int:
        return count_tokens(tokenizer, build(size), *(question.text for question in questions))

    size = largest_fitting(
        prompt_tokens, room, least=0, most=_MOST_SENTENCES, start=max(0, room // 24)
    )
    if size is None:
        least = prompt_tokens(0) + new_tokens
        raise InputError(
            f"length={length} is too short for task {task}, which needs {least} tokens without "
            f"any filler; try length={2 * least}"
        )
    return build(size)
