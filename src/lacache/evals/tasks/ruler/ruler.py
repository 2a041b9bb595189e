"""What RULER's tasks share: samples of a length, and the score."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, final

from lacache.common.validation import validate_int
from lacache.errors import InputError
from lacache.evals.tasks.lengths import count_tokens, largest_fitting
from lacache.evals.tasks.lm_eval_files import lm_eval_module
from lacache.evals.tasks.task import Question, Sample, Task


@final
@dataclass(frozen=True)
class Draft:
    """A whole prompt, up to where the answer starts."""

    prompt: str
    seam: str
    """How the question starts; where this is last found the context ends."""
    answers: tuple[str, ...]
    info: Mapping[str, Any] = field(default_factory=dict)

    def parts(self) -> tuple[str, str]:
        """Context and question: joined, they are the prompt."""
        cut = self.prompt.rindex(self.seam)
        return self.prompt[:cut], self.prompt[cut:]


@final
@dataclass(frozen=True)
class Candidate:
    """A sample of any size; the size counts lines, words or documents, as the task is."""

    build: Callable[[int], Draft]
    least: int
    most: int


@dataclass(frozen=True)
class Ruler(Task):
    """A task of RULER's.

    Args:
        max_new_tokens: most tokens of an answer; without it, RULER's own number.
    """

    answer_tokens: ClassVar[int]
    """RULER's own number (its `tokens_to_generate`)."""

    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None:
            validate_int("max_new_tokens", self.max_new_tokens, 1)

    @abstractmethod
    def candidates(self, *, length: int, room: int, count: int, seed: int) -> Iterable[Candidate]:
        """What samples are made of, in order; those that do not fit are passed over.

        Args:
            length: tokens of a whole prompt, answer included.
            room: tokens of a whole prompt alone.
            count: how many samples are wanted.
            seed: of everything drawn by chance.
        """

    def samples(self, tokenizer: Any, *, length: int, count: int, seed: int) -> list[Sample]:
        """Samples, each as large as its length allows.

        Raises:
            InputError: the length is too short, or a text that the task needs is missing.
            MissingExtraError: the extra `evals` is not installed.
        """
        new = self.max_new_tokens or self.answer_tokens
        room = length - new
        made: list[Sample] = []
        too_long: list[int] = []
        start = 0
        for candidate in self.candidates(length=length, room=room, count=count, seed=seed):
            if len(made) == count:
                break
            size = _fit(candidate, tokenizer, room, start)
            if size is None:
                too_long.append(_tokens(candidate.build(candidate.least), tokenizer) + new)
                continue
            draft, start = candidate.build(size), size
            context, question = draft.parts()
            info = {"size": size, **draft.info}
            made.append(Sample(context, (Question(question, draft.answers, new),), info))
        missing = count - len(made)
        if missing:
            enough = missing <= len(too_long)
            remedy = f"length={sorted(too_long)[missing - 1]}" if enough else "a smaller count"
            raise InputError(
                f"length={length} must hold {count} samples of {self.name}, answers of {new} "
                f"tokens included, and holds {len(made)}; try {remedy}"
            )
        return made

    def check(self) -> None:
        """Raise unless lm-eval's generators are there, and the files that were named."""
        generator("common_utils")

    def score(self, prediction: str, question: Question) -> float:
        """The share of the right answers that occur in the prediction."""
        rules = generator("common_utils")
        found: float = rules.string_match_all(
            rules.postprocess_pred([prediction]), [list(question.answers)]
        )
        return found


@cache
def generator(name: str, *needs: str, without: frozenset[str] = frozenset()) -> Any:
    """A private copy of one of lm-eval's modules for RULER; see `lm_eval_module`."""
    return lm_eval_module(f"ruler/{name}.py", *needs, without=without)


def _fit(candidate: Candidate, tokenizer: Any, room: int, start: int) -> int | None:
    return largest_fitting(
        lambda size: _tokens(candidate.build(size), tokenizer) <= room,
        least=candidate.least,
        most=max(candidate.least, candidate.most),
        start=start,
    )


def _tokens(draft: Draft, tokenizer: Any) -> int:
    return count_tokens(tokenizer, *draft.parts())
