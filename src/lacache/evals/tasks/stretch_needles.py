"""Needles hidden in stretches of one part of a text."""

import random
import re
from dataclasses import dataclass
from typing import Any, ClassVar, final

from lacache.common.validation import validate_int
from lacache.errors import ConfigError, InputError
from lacache.evals.hub_documents import load_named_document, validate_named_document
from lacache.evals.tasks import magic_numbers
from lacache.evals.tasks.filler import fill
from lacache.evals.tasks.task import Question, Sample, Task

_GOLDEN = 0.6180339887498949
_SENTENCE_END = re.compile(r"[.!?](?=\s)|\n")
_SPACE = re.compile(r"\s")
_NEAR = 400


@final
@dataclass(frozen=True)
class StretchNeedles(Task):
    """Numbers hidden in one stretch of the text, and a question about each, in one cache.

    Sample after sample the needles move, so that several samples cover the depths evenly. The
    text keeps its own lines, so it may be code or a list as well.

    Args:
        text: a built-in text such as "wikipedia", or a UTF-8 file.
        start: characters of it that are left out at the beginning.
        stop: where the part of it ends, in characters; without it, at its end. A stretch that
            comes to the end of the part goes on at its beginning.
        number: of the first sample; samples with other numbers are others.
        needles: in each stretch.
    """

    name: ClassVar[str] = "stretch-needles"

    text: str = "shakespeare:hamlet"
    start: int = 0
    stop: int | None = None
    number: int = 0
    needles: int = 3

    def __post_init__(self) -> None:
        validate_int("start", self.start, 0)
        validate_int("number", self.number, 0)
        validate_int("needles", self.needles, 1)
        if self.stop is not None:
            validate_int("stop", self.stop, self.start + 1)
        if self.needles > len(magic_numbers.WORDS):
            raise ConfigError(
                f"needles={self.needles} must be at most {len(magic_numbers.WORDS)}; try needles=3"
            )

    def samples(self, tokenizer: Any, *, length: int, count: int, seed: int) -> list[Sample]:
        """Samples with the depths of the needles, in the order of the questions, as a fact."""
        part = load_named_document(self.text).content[self.start : self.stop]
        if not part.strip():
            raise InputError(
                f"text {self.text} has nothing from character {self.start:,} on; try start=0"
            )
        numbers = range(self.number, self.number + count)
        return [self._sample(tokenizer, part, length, seed, number) for number in numbers]

    def check(self) -> None:
        """Raise unless the text is there."""
        validate_named_document(self.text)

    def score(self, prediction: str, question: Question) -> float:
        """1 if the number is in the answer, else 0."""
        return float(question.answers[0] in prediction)

    def _sample(self, tokenizer: Any, part: str, length: int, seed: int, number: int) -> Sample:
        rng = random.Random(f"{self.name} {seed} {self.start} {number}")
        begin = _cut(part, rng.randrange(len(part)))
        stretch = part[begin:] + part[:begin]
        hidden = magic_numbers.draw(rng, self.needles)
        within = (number + 1) * _GOLDEN % 1.0
        depths = [(place + within) / self.needles for place in range(self.needles)]
        order = rng.sample(list(zip(hidden, depths, strict=True)), self.needles)
        questions = tuple(magic_numbers.question(word, hidden[word]) for word, _ in order)
        sentences = [magic_numbers.needle(word, of_word) for word, of_word in hidden.items()]

        def build(size: int) -> str:
            hiding = _hide(stretch[:size], sentences, depths)
            return magic_numbers.before(self.needles > 1) + hiding

        context = fill(
            tokenizer,
            build,
            length=length,
            questions=[question.text for question in questions],
            new_tokens=sum(question.max_new_tokens for question in questions),
            what=self.name,
        )
        if len(context) >= len(build(len(stretch))):
            raise InputError(
                f"the {len(part):,} characters of text {self.text} do not fill length={length}; "
                "try a shorter length or a longer text"
            )
        return Sample(
            context,
            questions,
            {"depths": [round(depth, 4) for _, depth in order], "length": length},
        )


def _hide(stretch: str, sentences: list[str], depths: list[float]) -> str:
    """Each sentence after about that share of the stretch, where a sentence or line ends."""
    parts = []
    start = 0
    for sentence, depth in zip(sentences, depths, strict=True):
        place = max(start, _cut(stretch, round(depth * len(stretch))))
        parts += [stretch[start:place], f" {sentence} "]
        start = place
    return "".join([*parts, stretch[start:]])


def _cut(text: str, place: int) -> int:
    """The next place where a sentence or line has ended, else a word, if there is one near."""
    for end in (_SENTENCE_END, _SPACE):
        found = end.search(text, place, place + _NEAR)
        if found:
            return found.end()
    return place
