"""Needles in a haystack, in the words of RULER (arXiv 2404.06654): magic numbers for words."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.evals.tasks.documents import NOISE, insert, sentences, validate_haystack
from lacache.evals.tasks.task import Question, Sample, Task, fit_context

NEW_TOKENS = 10
"""Tokens of an answer: seven digits, which many tokenizers encode one by one, and a space."""

WORDS = (
    "anchor", "basket", "candle", "dragon", "engine", "feather", "garden", "hammer", "island",
    "jacket", "kettle", "lantern", "mirror", "needle", "orchard", "pencil", "quarry", "river",
    "saddle", "temple", "umbrella", "violin", "window", "yacht", "zipper", "bottle", "castle",
    "desert", "forest", "glacier", "harbor", "magnet",
)  # fmt: skip


def draw_numbers(rng: random.Random, count: int) -> dict[str, str]:
    """Draw numbers of seven digits by word; words and numbers are all different."""
    words = rng.sample(WORDS, count)
    numbers = rng.sample(range(1_000_000, 10_000_000), count)
    return dict(zip(words, map(str, numbers), strict=True))


def needle(word: str, number: str) -> str:
    """Return the sentence that states a number."""
    return f"One of the special magic numbers for {word} is: {number}."


def introduction(several: bool) -> str:
    """Return the first sentences of a context with one or several needles."""
    if several:
        return (
            "Some special magic numbers are hidden within the following text. Make sure to "
            "memorize them. I will quiz you about the numbers afterwards.\n"
        )
    return (
        "A special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards.\n"
    )


def question(word: str, number: str) -> Question:
    """Return the question after the context, or after another answer."""
    subject = f"the special magic number for {word} mentioned in the provided text"
    return Question(f"\nWhat is {subject}? {subject.capitalize()} is", (number,), NEW_TOKENS)


def draw_questions(
    rng: random.Random, numbers: dict[str, str], depths: Sequence[float]
) -> tuple[tuple[Question, ...], list[float]]:
    """Return a question for each number in random order, and the depths in the same order."""
    order = rng.sample(list(zip(numbers, depths, strict=True)), len(numbers))
    questions = tuple(question(word, numbers[word]) for word, _ in order)
    return questions, [round(depth, 4) for _, depth in order]


@final
@dataclass(frozen=True)
class Needle(Task):
    """One sentence with a number of 7 digits. An answer is right if it contains the number.

    The needles lie at even depths: the first sample's at the start, the last one's at the end, a
    single one's in the middle. With several lengths they make a grid.

    Args:
        haystack: "noise" (the passkey's), a built-in corpus such as "wikipedia", or a text file.
    """

    name: ClassVar[str] = "needle"

    haystack: str = NOISE

    def samples(self, tokenizer: Any, *, length: int, count: int, seed: int) -> list[Sample]:
        """Make samples with their depth, 0 to 1, and their length as info."""
        depths = [i / (count - 1) for i in range(count)] if count > 1 else [0.5]
        return [
            self._sample(tokenizer, length, depth, random.Random(f"needle {seed} {number}"))
            for number, depth in enumerate(depths)
        ]

    def validate(self) -> None:
        """Check that the haystack is there."""
        validate_haystack(self.haystack)

    def _sample(self, tokenizer: Any, length: int, depth: float, rng: random.Random) -> Sample:
        ((word, number),) = draw_numbers(rng, 1).items()
        asked = question(word, number)
        filler = sentences(self.haystack, rng)
        hidden = [needle(word, number)]
        context = fit_context(
            tokenizer,
            lambda size: introduction(False) + insert(filler(size), hidden, [depth]),
            [asked],
            length=length,
            task=self.name,
        )
        return Sample(context, (asked,), {"depth": round(depth, 4), "length": length})


@final
@dataclass(frozen=True)
class MultiTurn(Task):
    """Several needles in a context, and a question about each in random order, in one cache.

    The context is prefilled before the first question is known, so no method can choose by it
    what to keep.

    Args:
        needles: how many, 2 to 32; the first is near the start, the last near the end.
        haystack: "noise" (the passkey's), a built-in corpus such as "wikipedia", or a text file.
    """

    name: ClassVar[str] = "multiturn"

    needles: int = 4
    haystack: str = NOISE

    def __post_init__(self) -> None:
        validate_needles(self.needles, least=2, example=4)

    def samples(self, tokenizer: Any, *, length: int, count: int, seed: int) -> list[Sample]:
        """Make samples with the depths of the needles, in the order of the questions, as info."""
        return [
            self._sample(tokenizer, length, random.Random(f"multiturn {seed} {number}"))
            for number in range(count)
        ]

    def validate(self) -> None:
        """Check that the haystack is there."""
        validate_haystack(self.haystack)

    def _sample(self, tokenizer: Any, length: int, rng: random.Random) -> Sample:
        numbers = draw_numbers(rng, self.needles)
        hidden = [needle(word, number) for word, number in numbers.items()]
        depths = [(i + 0.5) / self.needles for i in range(self.needles)]
        questions, asked_depths = draw_questions(rng, numbers, depths)
        filler = sentences(self.haystack, rng)
        context = fit_context(
            tokenizer,
            lambda size: introduction(True) + insert(filler(size), hidden, depths),
            questions,
            length=length,
            task=self.name,
        )
        return Sample(context, questions, {"depths": asked_depths, "length": length})


def validate_needles(needles: int, *, least: int, example: int) -> None:
    """Check a number of needles, which have different words.

    Raises:
        ConfigError: it is below `least`, or there are not as many words.
    """
    validate_int("needles", needles, least)
    if needles > len(WORDS):
        raise ConfigError(f"needles={needles} must be at most {len(WORDS)}; try needles={example}")
