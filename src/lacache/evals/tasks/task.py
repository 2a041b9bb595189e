"""The interface of a task: samples of contexts and questions, and a score."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, final


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


class Task(ABC):
    """A source of samples. Subclasses are frozen dataclasses; their fields are the settings."""

    name: ClassVar[str]

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
