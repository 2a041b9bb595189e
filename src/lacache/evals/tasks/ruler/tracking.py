"""RULER's variable tracking: which variables hold a value, over a chain of assignments."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, final

from lacache.evals.tasks.ruler.chance import drawn_from, sample_seed
from lacache.evals.tasks.ruler.ruler import Candidate, Draft, Ruler, generator

HOPS = 4
EXAMPLE_LINES = 10
"""Lines of noise in the worked example: what lm-eval's limit of 500 tokens comes to, usually."""


@final
@dataclass(frozen=True)
class VariableTracking(Ruler):
    """One chain of four assignments among repeated sentences, after a worked example."""

    name: ClassVar[str] = "ruler-vt"
    answer_tokens: ClassVar[int] = 30

    def candidates(self, *, length: int, room: int, count: int, seed: int) -> Iterable[Candidate]:
        """One for each sample; the size counts lines of noise."""
        for index in range(count):
            build = partial(build_vt, seed=sample_seed(self.name, seed, index))
            # With as many lines as links in the chain lm-eval would cut the lines to pieces.
            yield Candidate(build, least=HOPS + 2, most=room)


def build_vt(size: int, *, seed: int) -> Draft:
    """A prompt with so many lines of noise."""
    vt = generator("vt_utils")
    with drawn_from(seed):
        example, solution = vt.generate_input_output(EXAMPLE_LINES, 1, HOPS, is_icl=True)
        text, answers = vt.generate_input_output(size, 1, HOPS)
        # The names of the example's variables are drawn anew, as they are for each sample there.
        example = vt.randomize_icl(f"{example} {' '.join(solution)}\n\n")
    return Draft(f"{example}\n\n{text.rstrip()}", "\nQuestion: Find all", tuple(answers))
