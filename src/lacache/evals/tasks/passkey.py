"""Passkey retrieval (landmark attention, arXiv 2305.16300): a number amid repeated filler."""

import random
from dataclasses import dataclass
from typing import Any, ClassVar, final

from lacache.evals.tasks.filler import NOISE, fill, insert, sentences
from lacache.evals.tasks.task import Question, Sample, Task

_BEFORE = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
    "I will quiz you about the important information there.\n"
)
_QUESTION = "What is the pass key? The pass key is"
_NEW_TOKENS = 8


@final
@dataclass(frozen=True)
class Passkey(Task):
    """A pass key of 5 digits at a depth drawn by chance. Right if the answer contains it."""

    name: ClassVar[str] = "passkey"

    def samples(self, tokenizer: Any, *, length: int, count: int, seed: int) -> list[Sample]:
        """Samples with their depth, 0 to 1, as a fact."""
        return [
            self._sample(tokenizer, length, random.Random(f"passkey {seed} {number}"))
            for number in range(count)
        ]

    def score(self, prediction: str, question: Question) -> float:
        """1 if the key is in the answer, else 0."""
        return float(question.answers[0] in prediction)

    def _sample(self, tokenizer: Any, length: int, rng: random.Random) -> Sample:
        key = str(rng.randrange(10_000, 100_000))
        return hide(tokenizer, key, round(rng.random(), 4), length=length, what=self.name)


def hide(tokenizer: Any, key: str, depth: float, *, length: int, what: str) -> Sample:
    """A key at a depth, 0 to 1, amid so much noise as fits into a length.

    Args:
        tokenizer: of the model.
        key: the pass key.
        depth: share of the noise that comes before it.
        length: tokens of the prompt and the answer.
        what: the task's name, for errors.

    Raises:
        InputError: the length is too short for the key alone.
    """
    needle = f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
    # The noise begins where it begins, so nothing is drawn.
    noise = sentences(NOISE, random.Random(0))
    context = fill(
        tokenizer,
        lambda size: _BEFORE + insert(noise(size), [needle], [depth]) + "\n",
        length=length,
        questions=[_QUESTION],
        new_tokens=_NEW_TOKENS,
        what=what,
    )
    question = Question(_QUESTION, (key,), _NEW_TOKENS)
    return Sample(context, (question,), {"depth": round(depth, 4), "length": length})
