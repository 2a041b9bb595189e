"""A needle in a haystack, at depths spread evenly over the samples."""

import random
from dataclasses import dataclass
from typing import Any, ClassVar, final

from lacache.evals.tasks import magic_numbers
from lacache.evals.tasks.filler import NOISE, fill, insert, sentences, validate_haystack
from lacache.evals.tasks.task import Question, Sample, Task


@final
@dataclass(frozen=True)
class Needle(Task):
    """One sentence with a number of 7 digits. Right if the answer contains the number.

    The first sample's needle is at the start, the last one's at the end, a single one's in the
    middle: with several lengths, a grid.

    Args:
        haystack: "noise" (the passkey's), a built-in text such as "wikipedia", or a text file.
    """

    name: ClassVar[str] = "needle"

    haystack: str = NOISE

    def samples(self, tokenizer: Any, *, length: int, count: int, seed: int) -> list[Sample]:
        """Samples with their depth, 0 to 1, and their length as info."""
        depths = [i / (count - 1) for i in range(count)] if count > 1 else [0.5]
        return [
            self._sample(tokenizer, length, depth, random.Random(f"needle {seed} {number}"))
            for number, depth in enumerate(depths)
        ]

    def check(self) -> None:
        """Raise unless the haystack is there."""
        validate_haystack(self.haystack)

    def score(self, prediction: str, question: Question) -> float:
        """1 if the number is in the answer, else 0."""
        return float(question.answers[0] in prediction)

    def _sample(self, tokenizer: Any, length: int, depth: float, rng: random.Random) -> Sample:
        ((word, number),) = magic_numbers.draw(rng, 1).items()
        needle = magic_numbers.needle(word, number)
        question = magic_numbers.question(word, number)
        filler = sentences(self.haystack, rng)
        context = fill(
            tokenizer,
            lambda size: magic_numbers.before(False) + insert(filler(size), [needle], [depth]),
            length=length,
            questions=[question.text],
            new_tokens=question.max_new_tokens,
            what=self.name,
        )
        return Sample(context, (question,), {"depth": round(depth, 4), "length": length})
