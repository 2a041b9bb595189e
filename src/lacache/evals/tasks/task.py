"""What a task is: contexts with questions about them, and how an answer is scored."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, final


@final
@dataclass(frozen=True)
class Question:
    """One question about a context that has been read."""

    text: str
    """What follows the context (or the last answer), up to where the answer starts."""
    answers: tuple[str, ...]
    """What is right: all of them or any of them, as the task scores."""
    max_new_tokens: int
    """How long an answer may be."""


@final
@dataclass(frozen=True)
class Sample:
    """A context and the questions about it, asked one after the other."""

    context: str
    questions: tuple[Question, ...]
    info: Mapping[str, Any] = field(default_factory=dict)
    """What a record keeps of it besides, such as the depth of a needle; plain JSON."""


class Task(ABC):
    """A kind of sample. Subclasses are frozen dataclasses; their fields are the settings."""

    name: ClassVar[str]

    @abstractmethod
    def samples(self, tokenizer: Any, *, length: int, count: int, seed: int) -> list[Sample]:
        """Samples, the same for the same arguments.

        Args:
            tokenizer: of the model, to measure lengths with.
            length: tokens of a whole prompt, answer included: at most, and nearly, that many.
            count: how many.
            seed: of everything drawn by chance.

        Raises:
            InputError: the length is too short, or a text that the task needs is missing.
        """

    def check(self) -> None:  # noqa: B027  # most tasks need nothing
        """Raise unless the files and packages that it needs are there; asks no network.

        Raises:
            InputError: a file or text is missing or damaged.
            MissingExtraError: a package is not installed.
        """

    @abstractmethod
    def score(self, prediction: str, question: Question) -> float:
        """How right an answer is, in 0 to 1."""
