"""RULER's two counting tasks: the most common words of a list, and of a coded text."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar, final

from lacache.evals.tasks.ruler.chance import drawn_from, sample_seed
from lacache.evals.tasks.ruler.ruler import Candidate, Draft, Ruler, generator


@final
@dataclass(frozen=True)
class CommonWords(Ruler):
    """The ten words that a list has most often: 6 times and others once, from 4K on 30 and 3."""

    name: ClassVar[str] = "ruler-cwe"
    answer_tokens: ClassVar[int] = 120

    def check(self) -> None:
        """Raise unless the list of words is there."""
        super().check()
        _cwe_utils()

    def candidates(self, *, length: int, room: int, count: int, seed: int) -> Iterable[Candidate]:
        """One for each sample; the size counts different words."""
        most = min(room, len(_cwe_utils().WORDS))
        for index in range(count):
            build = partial(build_cwe, length=length, seed=sample_seed(self.name, seed, index))
            yield Candidate(build, least=11, most=most)


@final
@dataclass(frozen=True)
class FrequentWords(Ruler):
    """The three most common of invented words, whose counts fall off as in a zeta distribution."""

    name: ClassVar[str] = "ruler-fwe"
    answer_tokens: ClassVar[int] = 50

    def candidates(self, *, length: int, room: int, count: int, seed: int) -> Iterable[Candidate]:
        """One for each sample; the size counts words, roughly."""
        for index in range(count):
            build = partial(build_fwe, length=length, seed=sample_seed(self.name, seed, index))
            # With fewer the fourth and fifth word may be equally common.
            yield Candidate(build, least=60, most=room)


def build_cwe(size: int, *, length: int, seed: int) -> Draft:
    """A prompt with so many different words."""
    cwe = _cwe_utils()
    with drawn_from(seed):
        cwe.RNG.seed(seed)
        _example, text, answers = cwe.generate_input_output(size, length)
    return Draft(text, "\nQuestion: What are the 10", tuple(answers))


def build_fwe(size: int, *, length: int, seed: int) -> Draft:
    """A prompt with about so many words."""
    fwe = generator("fwe_utils")
    with drawn_from(seed):
        text, answers, _size = fwe.generate_input_output(
            # The size says how long it is: lm-eval need not count tokens and cut.
            sys.maxsize,
            lambda _text: SimpleNamespace(input_ids=()),
            num_words=size,
            vocab_size=max(4, length // 50),
        )
    return Draft(text, "\nQuestion: Do not provide", tuple(answers))


def _cwe_utils() -> Any:
    return generator("cwe_utils", "wonderwords")
