"""The base class of RULER's tasks: samples of a length, seeds, and the score."""

import random
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, ClassVar, final

import numpy as np

from lacache.common.validation import validate_int
from lacache.errors import InputError
from lacache.evals.tasks.lm_eval_files import lm_eval_module
from lacache.evals.tasks.task import Question, Sample, Task, count_tokens, largest_fitting


@final
@dataclass(frozen=True)
class Draft:
    """A prompt up to the start of the answer."""

    prompt: str
    seam: str
    """Start of the question; the context ends at its last occurrence."""
    answers: tuple[str, ...]
    info: Mapping[str, Any] = field(default_factory=dict)

    def parts(self) -> tuple[str, str]:
        """Split the prompt into context and question."""
        cut = self.prompt.rindex(self.seam)
        return self.prompt[:cut], self.prompt[cut:]


@dataclass(frozen=True)
class Ruler(Task):
    """A task of RULER.

    Args:
        max_new_tokens: most tokens of an answer; None for RULER's number.
    """

    answer_tokens: ClassVar[int]
    """RULER's number (its `tokens_to_generate`)."""

    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None:
            validate_int("max_new_tokens", self.max_new_tokens, 1)

    @abstractmethod
    def build(self, size: int, *, index: int, length: int, seed: int) -> Draft:
        """Build a prompt of a size, which the task counts in lines, words or documents.

        Args:
            size: between the two `sizes`.
            index: of the sample.
            length: tokens of a whole prompt, answer included.
            seed: of the sample.
        """

    @abstractmethod
    def sizes(self, index: int, room: int) -> tuple[int, int]:
        """Return the least and the greatest size of a sample that `room` tokens may hold."""

    def indices(self, count: int, seed: int) -> Iterable[int]:
        """Return the samples to try in order; those that do not fit are skipped."""
        return range(count)

    def samples(self, tokenizer: Any, *, length: int, count: int, seed: int) -> list[Sample]:
        """Make samples, each as large as its length allows.

        Raises:
            InputError: the length is too short, or a document that the task needs is missing.
            MissingExtraError: the extra `evals` is not installed.
        """
        new = self.max_new_tokens or self.answer_tokens
        room = length - new
        made: list[Sample] = []
        too_long: list[int] = []
        start = 0
        for index in self.indices(count, seed):
            if len(made) == count:
                break
            drawn = sample_seed(self.name, seed, index)
            build = partial(self.build, index=index, length=length, seed=drawn)
            tokens = partial(_tokens, build, tokenizer)
            least, most = self.sizes(index, room)
            size = largest_fitting(tokens, room, least=least, most=max(least, most), start=start)
            if size is None:
                too_long.append(tokens(least) + new)
                continue
            draft, start = build(size), size
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

    def validate(self) -> None:
        """Check that lm-eval's generators and the named files are there."""
        generator("common_utils")

    def score(self, prediction: str, question: Question) -> float:
        """Return the share of the right answers that occur in the prediction."""
        rules = generator("common_utils")
        found: float = rules.string_match_all(
            rules.postprocess_pred([prediction]), [list(question.answers)]
        )
        return found


@cache
def generator(name: str, *needs: str, without: frozenset[str] = frozenset()) -> Any:
    """Return a private copy of one of lm-eval's modules for RULER; see `lm_eval_module`."""
    return lm_eval_module(f"ruler/{name}.py", *needs, without=without)


def sample_seed(task: str, seed: int, index: int) -> int:
    """Return the seed of one sample, below 2**32, which differs by task, seed and index."""
    return random.Random(f"{task} {seed} {index}").getrandbits(32)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of Python and numpy, and restore their states afterwards."""
    state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)


def _tokens(build: Callable[[int], Draft], tokenizer: Any, size: int) -> int:
    return count_tokens(tokenizer, *build(size).parts())
