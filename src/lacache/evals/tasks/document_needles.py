"""Needles hidden in excerpts of one part of a document."""

import random
import re
from dataclasses import dataclass
from typing import Any, ClassVar, final

from lacache.common.validation import validate_int
from lacache.errors import InputError
from lacache.evals.tasks.documents import load_named_document, validate_named_document
from lacache.evals.tasks.needles import (
    draw_numbers,
    draw_questions,
    introduction,
    needle,
    validate_needles,
)
from lacache.evals.tasks.task import Sample, Task, fit_context

_GOLDEN = 0.6180339887498949
_SENTENCE_END = re.compile(r"[.!?](?=\s)|\n")
_SPACE = re.compile(r"\s")
_NEAR = 400


@final
@dataclass(frozen=True)
class DocumentNeedles(Task):
    """Numbers hidden in an excerpt of a document, and a question about each, in one cache.

    The needles move from sample to sample, so that several samples cover the depths evenly. The
    document keeps its line ends, so it may be code or a list as well.

    Args:
        text: a built-in corpus such as "wikipedia", or a UTF-8 file.
        start: characters that are left out at the beginning.
        stop: end of the part, in characters; None for the end of the document. An excerpt that
            reaches the end of the part continues at its beginning.
        number: of the first sample; samples with other numbers differ.
        needles: number of needles in each excerpt.
    """

    name: ClassVar[str] = "document-needles"

    text: str = "shakespeare:hamlet"
    start: int = 0
    stop: int | None = None
    number: int = 0
    needles: int = 3

    def __post_init__(self) -> None:
        validate_int("start", self.start, 0)
        validate_int("number", self.number, 0)
        validate_needles(self.needles, least=1, example=3)
        if self.stop is not None:
            validate_int("stop", self.stop, self.start + 1)

    def samples(self, tokenizer: Any, *, length: int, count: int, seed: int) -> list[Sample]:
        """Make samples with the depths of the needles, in the order of the questions, as info."""
        part = load_named_document(self.text).content[self.start : self.stop]
        if not part.strip():
            raise InputError(
                f"text {self.text} has nothing from character {self.start:,} on; try start=0"
            )
        numbers = range(self.number, self.number + count)
        return [self._sample(tokenizer, part, length, seed, number) for number in numbers]

    def validate(self) -> None:
        """Check that the document is there."""
        validate_named_document(self.text)

    def _sample(self, tokenizer: Any, part: str, length: int, seed: int, number: int) -> Sample:
        # The first word of the seed is the task's name of version 0.1: the samples stay the same.
        rng = random.Random(f"stretch-needles {seed} {self.start} {number}")
        begin = _cut(part, rng.randrange(len(part)))
        excerpt = part[begin:] + part[:begin]
        numbers = draw_numbers(rng, self.needles)
        shift = (number + 1) * _GOLDEN % 1.0
        depths = [(place + shift) / self.needles for place in range(self.needles)]
        questions, asked_depths = draw_questions(rng, numbers, depths)
        needles = [needle(word, of_word) for word, of_word in numbers.items()]

        def build(size: int) -> str:
            return introduction(self.needles > 1) + _hide(excerpt[:size], needles, depths)

        context = fit_context(tokenizer, build, questions, length=length, task=self.name)
        if len(context) >= len(build(len(excerpt))):
            raise InputError(
                f"the {len(part):,} characters of text {self.text} do not fill length={length}; "
                "try a shorter length or a longer text"
            )
        return Sample(context, questions, {"depths": asked_depths, "length": length})


def _hide(excerpt: str, needles: list[str], depths: list[float]) -> str:
    """Insert each needle after about its share of the excerpt, where a sentence or line ends."""
    parts = []
    start = 0
    for sentence, depth in zip(needles, depths, strict=True):
        place = max(start, _cut(excerpt, round(depth * len(excerpt))))
        parts += [excerpt[start:place], f" {sentence} "]
        start = place
    return "".join([*parts, excerpt[start:]])


def _cut(content: str, place: int) -> int:
    """Return the next end of a sentence or line, else of a word, if there is one near."""
    for end in (_SENTENCE_END, _SPACE):
        found = end.search(content, place, place + _NEAR)
        if found:
            return found.end()
    return place
