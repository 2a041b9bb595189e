"""RULER's tracing and aggregation tasks: variables of a value, and the most common words."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar, final

from lacache.evals.tasks.ruler.ruler import (
    Candidate,
    Draft,
    Ruler,
    generator,
    sample_seed,
    seeded,
)

HOPS = 4
EXAMPLE_LINES = 10
"""Lines of noise in the worked example, which usually makes lm-eval's limit of 500 tokens."""


@final
@dataclass(frozen=True)
class VariableTracking(Ruler):
    """One chain of four assignments among repeated sentences, after a worked example."""

    name: ClassVar[str] = "ruler-vt"
    answer_tokens: ClassVar[int] = 30

    def candidates(self, *, length: int, room: int, count: int, seed: int) -> Iterable[Candidate]:
        """Yield one candidate for each sample; the size counts lines of noise."""
        for index in range(count):
            build = partial(build_vt, seed=sample_seed(self.name, seed, index))
            # With as many lines as links in the chain lm-eval would cut the lines to pieces.
            yield Candidate(build, least=HOPS + 2, most=room)


@final
@dataclass(frozen=True)
class CommonWords(Ruler):
    """The ten most common words of a list: 6 times and others once, from 4K tokens on 30 and 3."""

    name: ClassVar[str] = "ruler-cwe"
    answer_tokens: ClassVar[int] = 120

    def validate(self) -> None:
        """Check that the list of words is there."""
        super().validate()
        _cwe_utils()

    def candidates(self, *, length: int, room: int, count: int, seed: int) -> Iterable[Candidate]:
        """Yield one candidate for each sample; the size counts different words."""
        most = min(room, len(_cwe_utils().WORDS))
        for index in range(count):
            build = partial(build_cwe, length=length, seed=sample_seed(self.name, seed, index))
            yield Candidate(build, least=11, most=most)


@final
@dataclass(frozen=True)
class FrequentWords(Ruler):
    """The three most common of invented words, whose counts follow a zeta distribution."""

    name: ClassVar[str] = "ruler-fwe"
    answer_tokens: ClassVar[int] = 50

    def candidates(self, *, length: int, room: int, count: int, seed: int) -> Iterable[Candidate]:
        """Yield one candidate for each sample; the size is about the number of words."""
        for index in range(count):
            build = partial(build_fwe, length=length, seed=sample_seed(self.name, seed, index))
            # With fewer the fourth and fifth word may be equally common.
            yield Candidate(build, least=60, most=room)


def build_vt(size: int, *, seed: int) -> Draft:
    """Build a prompt with `size` lines of noise."""
    vt = generator("vt_utils")
    with seeded(seed):
        example, solution = vt.generate_input_output(EXAMPLE_LINES, 1, HOPS, is_icl=True)
        text, answers = vt.generate_input_output(size, 1, HOPS)
        # As in lm-eval, the names of the example's variables are drawn anew for each sample.
        example = vt.randomize_icl(f"{example} {' '.join(solution)}\n\n")
    return Draft(f"{example}\n\n{text.rstrip()}", "\nQuestion: Find all", tuple(answers))


def build_cwe(size: int, *, length: int, seed: int) -> Draft:
    """Build a prompt with `size` different words."""
    cwe = _cwe_utils()
    with seeded(seed):
        cwe.RNG.seed(seed)
        _example, text, answers = cwe.generate_input_output(size, length)
    return Draft(text, "\nQuestion: What are the 10", tuple(answers))


def build_fwe(size: int, *, length: int, seed: int) -> Draft:
    """Build a prompt with about `size` words."""
    fwe = generator("fwe_utils")
    with seeded(seed):
        text, answers, _size = fwe.generate_input_output(
            # The size sets the length, so lm-eval need not count tokens and cut.
            sys.maxsize,
            lambda _text: SimpleNamespace(input_ids=()),
            num_words=size,
            vocab_size=max(4, length // 50),
        )
    return Draft(text, "\nQuestion: Do not provide", tuple(answers))


def _cwe_utils() -> Any:
    return generator("cwe_utils", "wonderwords")
