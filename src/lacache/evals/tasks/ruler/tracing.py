"""RULER's tracing and aggregation tasks: variables of a value, and the most common words."""

import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar, final

from lacache.evals.tasks.ruler.ruler import Draft, Ruler, generator, seeded

HOPS = 4
EXAMPLE_LINES = 10
"""Lines of noise in the worked example, which usually makes lm-eval's limit of 500 tokens."""


@final
@dataclass(frozen=True)
class VariableTracking(Ruler):
    """One chain of four assignments among repeated sentences, after a worked example.

    The size counts lines of noise.
    """

    name: ClassVar[str] = "ruler-vt"
    answer_tokens: ClassVar[int] = 30

    def sizes(self, index: int, room: int) -> tuple[int, int]:
        """Return sizes at which lm-eval does not cut the lines to pieces."""
        # With as many lines as links in the chain it would.
        return HOPS + 2, room

    def build(self, size: int, *, index: int, length: int, seed: int) -> Draft:
        """Build a prompt with `size` lines of noise."""
        vt = generator("vt_utils")
        with seeded(seed):
            example, solution = vt.generate_input_output(EXAMPLE_LINES, 1, HOPS, is_icl=True)
            text, answers = vt.generate_input_output(size, 1, HOPS)
            # As in lm-eval, the names of the example's variables are drawn anew for each sample.
            example = vt.randomize_icl(f"{example} {' '.join(solution)}\n\n")
        return Draft(f"{example}\n\n{text.rstrip()}", "\nQuestion: Find all", tuple(answers))


@final
@dataclass(frozen=True)
class CommonWords(Ruler):
    """The ten most common words of a list: 6 times and others once, from 4K tokens on 30 and 3.

    The size counts different words.
    """

    name: ClassVar[str] = "ruler-cwe"
    answer_tokens: ClassVar[int] = 120

    def validate(self) -> None:
        """Check that the list of words is there."""
        super().validate()
        _cwe_utils()

    def sizes(self, index: int, room: int) -> tuple[int, int]:
        """Return one more than the answers, and as many as there are words."""
        return 11, min(room, len(_cwe_utils().WORDS))

    def build(self, size: int, *, index: int, length: int, seed: int) -> Draft:
        """Build a prompt with `size` different words."""
        cwe = _cwe_utils()
        with seeded(seed):
            cwe.RNG.seed(seed)
            _example, text, answers = cwe.generate_input_output(size, length)
        return Draft(text, "\nQuestion: What are the 10", tuple(answers))


@final
@dataclass(frozen=True)
class FrequentWords(Ruler):
    """The three most common of invented words, whose counts follow a zeta distribution.

    The size is about the number of words.
    """

    name: ClassVar[str] = "ruler-fwe"
    answer_tokens: ClassVar[int] = 50

    def sizes(self, index: int, room: int) -> tuple[int, int]:
        """Return sizes at which the third word is more common than the fourth."""
        # With fewer the fourth and fifth word may be equally common.
        return 60, room

    def build(self, size: int, *, index: int, length: int, seed: int) -> Draft:
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
