"""A world in which it is known how good each policy is, for searches without a model."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

from lacache.common.records import Record
from lacache.evals.record_file import Outcome
from lacache.evals.runs import RunSpec
from lacache.evals.tasks.document_needles import DocumentNeedles
from lacache.evals.tasks.ppl import Perplexity
from lacache.evals.tuning.split import Part
from lacache.policies import Policy, parse_policy

LENGTH = 64
EXCERPTS = 40
PARTS = (
    Part("compared", "made up", (0, 1000), (0, EXCERPTS * LENGTH), 0),
    Part("held out", "made up", (1000, 2000), (EXCERPTS * LENGTH, 2 * EXCERPTS * LENGTH), 1),
)


def ladders(count: int) -> list[Policy]:
    return [parse_policy(f"ladder:unit={i + 1}") for i in range(count)]


@final
@dataclass
class World:
    """Makes records. Figures are the truth and some noise that all policies share in part.

    Args:
        truth: mean loss of a token and of an answer, by policy; others have `other`.
        seconds: that each run takes.
    """

    truth: dict[Policy, tuple[float, float]]
    other: tuple[float, float] = (3.0, 20.0)
    full: tuple[float, float] = (2.9, 1.0)
    seconds: Callable[[Policy], float] = lambda policy: 1.0
    failing: set[Policy] = field(default_factory=set)
    asked: list[RunSpec] = field(default_factory=list)

    def measure(self, spec: RunSpec) -> Outcome:
        self.asked.append(spec)
        if spec.policy in self.failing:
            return Outcome(spec, error="it broke")
        is_full = spec.is_full
        token, answer = self.full if is_full else self.truth.get(spec.policy, self.other)
        rng = random.Random(repr((spec.task, spec.seed, spec.policy)))
        shared = random.Random(repr((spec.task, spec.seed)))
        record: Record = {
            "seconds": self.seconds(spec.policy),
            "mean_bytes": 900.0,
            "peak_bytes": 1000.0,
            "samples_sha256": repr(spec.task),
        }
        if isinstance(spec.task, Perplexity):
            record["nll"] = [
                token + shared.gauss(0, 0.5) + rng.gauss(0, 0.02) for _ in range(spec.length - 1)
            ]
        else:
            assert isinstance(spec.task, DocumentNeedles)
            losses = [answer + shared.gauss(0, 1) + rng.gauss(0, 0.2) for _ in range(3)]
            record |= {
                "nll": sum(losses) / 3,
                "samples": [{"nlls": losses, "scores": [float(x < 8) for x in losses]}],
            }
        return Outcome(spec, record)
