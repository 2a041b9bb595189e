"""Passkeys at depths spread evenly, as in the needle test of the paper's released code."""

import random
from dataclasses import dataclass
from typing import Any, ClassVar, final

from lacache.evals.tasks.passkey import hide
from lacache.evals.tasks.task import Question, Sample, Task


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
        return [hide(tokenizer, key, depth, length=length, what=self.name) for depth in depths]

    def score(self, prediction: str, question: Question) -> float:
        """1 if the key is in the answer, else 0."""
        return float(question.answers[0] in prediction)
