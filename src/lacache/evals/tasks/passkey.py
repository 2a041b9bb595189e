"""Passkey retrieval (landmark attention, arXiv 2305.16300): a number amid repeated filler."""

import random
from dataclasses import dataclass
from typing import Any, ClassVar, final

from lacache.evals.tasks.documents import NOISE, insert, sentences
from lacache.evals.tasks.task import Question, Sample, Task, fit_context

_BEFORE = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
    "I will quiz you about the important information there.\n"
)
_QUESTION = "What is the pass key? The pass key is"
_NEW_TOKENS = 8


@final
@dataclass(frozen=True)
class Passkey(Task):
    """A pass key of 5 digits at a random depth. An answer is right if it contains the key."""

    name: ClassVar[str] = "passkey"

    def samples(self, tokenizer: Any, *, length: int, count: int, seed: int) -> list[Sample]:
        """Make samples with their depth, 0 to 1, as info."""
        rngs = [random.Random(f"passkey {seed} {number}") for number in range(count)]
        return [
            _sample(
                tokenizer,
                key=str(rng.randrange(10_000, 100_000)),
                depth=round(rng.random(), 4),
                length=length,
                task=self.name,
            )
            for rng in rngs
        ]


@final
@dataclass(frozen=True)
class PasskeyGrid(Task):
    """A pass key from 1 to 99999 at even depths. An answer is right if it contains the key.

    As in the needle test of the paper's released code: the first sample's key is at the start,
    the last one's at the end, a single one's in the middle, and every sample of one seed has the
    same key.
    """

    name: ClassVar[str] = "passkey-grid"

    def samples(self, tokenizer: Any, *, length: int, count: int, seed: int) -> list[Sample]:
        """Make samples with their depth, 0 to 1, as info."""
        key = str(random.Random(seed).randint(1, 99_999))
        depths = [i / (count - 1) for i in range(count)] if count > 1 else [0.5]
        return [
            _sample(tokenizer, key=key, depth=depth, length=length, task=self.name)
            for depth in depths
        ]


def _sample(tokenizer: Any, *, key: str, depth: float, length: int, task: str) -> Sample:
    """Hide a key at a depth, 0 to 1, amid as much noise as fits into the length."""
    needle = f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
    # Noise has a fixed start, so nothing is drawn.
    noise = sentences(NOISE, random.Random(0))
    question = Question(_QUESTION, (key,), _NEW_TOKENS)
    context = fit_context(
        tokenizer,
        lambda size: _BEFORE + insert(noise(size), [needle], [depth]) + "\n",
        [question],
        length=length,
        task=task,
    )
    return Sample(context, (question,), {"depth": round(depth, 4), "length": length})
