"""Several questions about one context, asked one after the other in one cache."""

import random
from dataclasses import dataclass
from typing import Any, ClassVar, final

from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.evals.tasks import magic_numbers
from lacache.evals.tasks.filler import NOISE, fill, insert, sentences, validate_haystack
from lacache.evals.tasks.task import Question, Sample, Task


@final
@dataclass(frozen=True)
class MultiTurn(Task):
    """Needles spread over a context, and a question about each in an order drawn by chance.

    The context is read before the first question is known, so no method can choose what to keep
    by it.

    Args:
        needles: how many, 2 to 32; the first is near the start, the last near the end.
        haystack: "noise" (the passkey's), a built-in text such as "wikipedia", or a text file.
    """

    name: ClassVar[str] = "multiturn"

    needles: int = 4
    haystack: str = NOISE

    def __post_init__(self) -> None:
        validate_int("needles", self.needles, 2)
        if self.needles > len(magic_numbers.WORDS):
            raise ConfigError(
                f"needles={self.needles} must be at most {len(magic_numbers.WORDS)}; try needles=4"
            )

    def samples(self, tokenizer: Any, *, length: int, count: int, seed: int) -> list[Sample]:
        """Samples with the depths of the needles, in the order of the questions, as a fact."""
        return [
            self._sample(tokenizer, length, random.Random(f"multiturn {seed} {number}"))
            for number in range(count)
        ]

    def check(self) -> None:
        """Raise unless the haystack is there."""
        validate_haystack(self.haystack)

    def score(self, prediction: str, question: Question) -> float:
        """1 if the number is in the answer, else 0."""
        return float(question.answers[0] in prediction)

    def _sample(self, tokenizer: Any, length: int, rng: random.Random) -> Sample:
        numbers = magic_numbers.draw(rng, self.needles)
        hidden = [magic_numbers.needle(word, number) for word, number in numbers.items()]
        depths = [(i + 0.5) / self.needles for i in range(self.needles)]
        order = rng.sample(list(zip(numbers, depths, strict=True)), self.needles)
        questions = tuple(magic_numbers.question(word, numbers[word]) for word, _ in order)
        filler = sentences(self.haystack, rng)
        context = fill(
            tokenizer,
            lambda size: magic_numbers.before(True) + insert(filler(size), hidden, depths),
            length=length,
            questions=[question.text for question in questions],
            new_tokens=sum(question.max_new_tokens for question in questions),
            what=self.name,
        )
        return Sample(
            context,
            questions,
            {"depths": [round(depth, 4) for _, depth in order], "length": length},
        )
