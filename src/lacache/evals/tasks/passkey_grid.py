"""Passkeys at depths spread evenly, as in the needle test of the paper's released code."""

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
class PasskeyGrid(Task):
    """A pass key from 1 to 99999. Right if the answer contains it.

    The first sample's key is at the start, the last one's at the end, a single one's in the
    middle. Every sample of one seed has the same key, as in the released code.
    """

    name: ClassVar[str] = "passkey-grid"

    def samples(self, tokenizer: Any, *, length: int, count: int, seed: int) -> list[Sample]:
        """Samples with their depth, 0 to 1, as a fact."""
        key = str(random.Random(seed).randint(1, 99_999))
        depths = [i / (count - 1) for i in range(count)] if count > 1 else [0.5]
        return [_sample(tokenizer, length, key, depth) for depth in depths]

    def score(self, prediction: str, question: Question) -> float:
        """1 if the key is in the answer, else 0."""
        return float(question.answers[0] in prediction)


def _sample(tokenizer: Any, length: int, key: str, depth: float) -> Sample:
    needle = f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
    noise = sentences(NOISE, random.Random(0))
    context = fill(
        tokenizer,
        lambda size: _BEFORE + insert(noise(size), [needle], [depth]) + "\n",
        length=length,
        questions=[_QUESTION],
        new_tokens=_NEW_TOKENS,
        what=PasskeyGrid.name,
    )
    question = Question(_QUESTION, (key,), _NEW_TOKENS)
    return Sample(context, (question,), {"depth": round(depth, 4), "length": length})
